"""Pictures and clips as records name them: paths below a folder, data: URIs, bytes, pictures; lists of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmblocks.conversation import Visual
from mmblocks.data.media.files import Slice, is_picture, is_there, picture_in_base64, refusal_of_url
from mmblocks.errors import DataError
from mmblocks.keys import refuse_unread
from mmblocks.shapes import VisualKind

KINDS: tuple[VisualKind, ...] = ("image", "video")
Media = Mapping[VisualKind, Sequence[Visual]]
"""The pictures and the clips of a record, in their order."""


@dataclass(frozen=True, slots=True)
class MediaRoots:
    """The folders that paths of pictures and of clips are relative to, and the pace of clips given as pictures."""

    image: Path
    video: Path
    frames_fps: float = 1.0

    @classmethod
    def of(cls, default: Path, images: str | None, videos: str | None, frames_fps: float = 1.0) -> MediaRoots:
        """`images` and `videos` as a user gives them; without `videos` both are the same, without either `default`."""
        for kind, folder in zip(KINDS, (images, videos), strict=True):
            if folder is not None and not Path(folder).is_dir():
                if (refusal := refusal_of_url(folder, kind)) is not None:
                    raise DataError(f"{folder}: {refusal}")
                raise DataError(f"{folder}: there is no such folder; name the one that paths of media are relative to.")
        image = default if images is None else Path(images)
        return cls(image, image if videos is None else Path(videos), frames_fps)

    def visuals(self, kind: VisualKind, named: Any, origin: str, column: str | None = None) -> list[Visual]:
        """What a record names, in its order: nothing, one or a list; a list of frames may be a clip in itself."""
        if named is None:
            return []
        if kind == "video" and _are_frames(named):
            return [self._visual(kind, tuple(named), origin, column)]
        several = named if isinstance(named, list) else [named]
        return [self._visual(kind, one, origin, column) for one in several]

    def _visual(self, kind: VisualKind, named: Any, origin: str, column: str | None) -> Visual:
        if isinstance(named, Mapping):  # how tables store media: {"bytes": ..., "path": ...}
            refuse_unread(named, ("bytes", "path"), f"{origin}: {column or kind!r}", "part")
            named = named.get("bytes") or named.get("path")
        if kind == "video" and isinstance(named, list | tuple) and _are_frames(named):
            return Visual(kind, tuple(self._there(kind, name, origin) for name in named), self.frames_fps)
        if isinstance(named, str) and named and not named.startswith("data:"):
            if kind == "image" and (content := self._picture_in(named)) is not None:
                return Visual(kind, content)
            path = self._there(kind, named, origin)
            paced = kind == "video" and path.is_dir()
            return Visual(kind, path, self.frames_fps) if paced else Visual(kind, path)
        if (named and isinstance(named, str | bytes | Slice | Image.Image)) or isinstance(named, np.ndarray):
            return Visual(kind, named)
        raise DataError(f"{origin}: {column or kind!r} is {[named]!r:.80}; write a path or a list of paths.")

    def _picture_in(self, named: str) -> bytes | None:
        """A picture that a record holds as base64 itself, where no file is called so."""
        content = picture_in_base64(named)
        return None if content is None or is_there(self.image / named) else content

    def _there(self, kind: VisualKind, name: str, origin: str) -> Path:
        path = (self.image if kind == "image" else self.video) / name
        if is_there(path):
            return path
        if (refusal := refusal_of_url(name, kind)) is not None:
            raise DataError(f"{origin}: {name:.200}: {refusal}")
        raise DataError(f"{origin}: the {kind} {path!s:.500} does not exist; check the path and the media root.")


def _are_frames(named: Any) -> bool:
    """Whether a list of names is one clip: its frames as pictures."""
    return bool(named) and isinstance(named, list | tuple) and all(isinstance(n, str) and is_picture(n) for n in named)
