"""Images and videos as records name them: paths below a folder, data: URIs, bytes, images; lists of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image

from mmblocks.conversation import Visual
from mmblocks.data.media.files import (
    FileSlice,
    decode_base64_image,
    explain_url_refusal,
    is_existing_path,
    is_image_name,
)
from mmblocks.errors import DataError
from mmblocks.keys import refuse_unread_keys
from mmblocks.shapes import VisualKind

KINDS: tuple[VisualKind, ...] = ("image", "video")
Media = Mapping[VisualKind, Sequence[Visual]]
"""The images and the videos of a record, in their order."""


@dataclass(frozen=True, slots=True)
class MediaRoots:
    """The folders that paths of images and of videos are relative to, and the pace of videos given as images."""

    image: Path
    video: Path
    frames_fps: float = 1.0

    @classmethod
    def from_settings(
        cls, default: Path, images: str | None, videos: str | None, frames_fps: float = 1.0
    ) -> MediaRoots:
        """`images` and `videos` as a user gives them; without `videos` both are the same, without either `default`."""
        for kind, folder in zip(KINDS, (images, videos), strict=True):
            if folder is not None and not Path(folder).is_dir():
                if (refusal := explain_url_refusal(folder, kind)) is not None:
                    raise DataError(f"{folder}: {refusal}")
                raise DataError(f"{folder}: there is no such folder; name the one that paths of media are relative to.")
        image = default if images is None else Path(images)
        return cls(image, image if videos is None else Path(videos), frames_fps)

    def make_visuals(self, kind: VisualKind, named: object, origin: str, column: str | None = None) -> list[Visual]:
        """What a record names, in its order: nothing, one or a list; a list of frames may be a video in itself."""
        if named is None:
            return []
        if kind == "video" and _is_frame_list(named):
            return [self._make_visual(kind, tuple(named), origin, column)]
        names = named if isinstance(named, list) else [named]
        return [self._make_visual(kind, name, origin, column) for name in names]

    def _make_visual(self, kind: VisualKind, named: object, origin: str, column: str | None) -> Visual:
        if isinstance(named, Mapping):  # how tables store media: {"bytes": ..., "path": ...}
            refuse_unread_keys(named, ("bytes", "path"), f"{origin}: {column or kind!r}", "part")
            named = named.get("bytes") or named.get("path")
        if kind == "video" and _is_frame_list(named):
            return Visual(kind, tuple(self._resolve_path(kind, name, origin) for name in named), self.frames_fps)
        if isinstance(named, str) and named and not named.startswith("data:"):
            content = decode_base64_image(named) if kind == "image" else None
            if content is not None and not is_existing_path(self.image / named):
                return Visual(kind, content)
            path = self._resolve_path(kind, named, origin)
            paced = kind == "video" and path.is_dir()
            return Visual(kind, path, self.frames_fps) if paced else Visual(kind, path)
        if (named and isinstance(named, str | bytes | FileSlice | Image.Image)) or isinstance(named, np.ndarray):
            return Visual(kind, named)
        raise DataError(f"{origin}: {column or kind!r} is {[named]!r:.80}; write a path or a list of paths.")

    def _resolve_path(self, kind: VisualKind, name: str, origin: str) -> Path:
        path = (self.image if kind == "image" else self.video) / name
        if is_existing_path(path):
            return path
        if (refusal := explain_url_refusal(name, kind)) is not None:
            raise DataError(f"{origin}: {name:.200}: {refusal}")
        raise DataError(f"{origin}: the {kind} {path!s:.500} does not exist; check the path and the media root.")


def _is_frame_list(named: object) -> TypeGuard[Sequence[str]]:
    """Whether a list of names is one video: its frames as images."""
    return (
        bool(named) and isinstance(named, list | tuple) and all(isinstance(n, str) and is_image_name(n) for n in named)
    )
