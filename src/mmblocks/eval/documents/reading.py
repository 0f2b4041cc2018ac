"""Documents of rows: their keys, and their images and videos, of which none may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import Visual
from mmblocks.data.media.files import decode_base64_image, is_existing_path, resolve_source
from mmblocks.data.media.identity import make_digest
from mmblocks.data.media.images import read_image_size
from mmblocks.data.record_errors import name_errors
from mmblocks.data.records.named_media import KINDS, MediaRoots
from mmblocks.data.sources import NamedRecords
from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.documents.layout import DocumentLayout, list_media
from mmblocks.eval.documents.media_folder import MediaFolder
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.image_reading import ImageReading
from mmblocks.shapes import VisualKind

ANY_SIZE = ImageReading(max_px=2**40)
"""How large images may be is the model's setting, and so is checked when they are shown to it."""
_SHOWN = 300
"""Characters of a bad row that an error shows."""


@dataclass(frozen=True, slots=True)
class Documents(NamedRecords[Document]):
    """The documents of a benchmark, each read on access.

    `documents[i]` raises a `DataError` that names the record, the value and the cure where a field, image or video of this
    document is missing or unreadable; the other documents can still be read.
    """

    rows: DocumentRows
    layout: DocumentLayout
    roots: MediaRoots
    folders: Mapping[VisualKind, MediaFolder]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def describe_origin(self, number: int) -> str:
        return self.rows.describe_origin(number)

    def read_record(self, number: int) -> Document:
        where, row = self.describe_origin(number), self.rows.read_row(number)
        fields = self.layout.read_fields(row, where)
        named = {"image": self.layout.images, "video": self.layout.videos}
        visuals = [visual for kind in KINDS for visual in self._read_visuals(kind, row, named[kind], where)]
        if self.layout.needs_visual and not visuals:
            names = " or ".join(name for kind in KINDS for name in named[kind])
            raise DataError(
                f"{where}: it names no image or video ({names}); the question is about one, so add it or remove the record."
            )
        cluster = self.layout.find_cluster(row) or (_name_visual(visuals[0]) if visuals else "")
        return Document(self.keys[number], fields, tuple(visuals), where, cluster)

    def _read_visuals(
        self, kind: VisualKind, row: Mapping[str, Any], names: tuple[str, ...], where: str
    ) -> list[Visual]:
        visuals = []
        for name, value in list_media(row, names):
            found = self.roots.make_visuals(kind, self._find_paths(kind, value, where), where, name)
            for visual in found:
                with name_errors(f"{where}: {name!r}"):
                    _check_visual(visual)
            visuals += found
        return visuals

    def _find_paths(self, kind: VisualKind, value: object, where: str) -> object:
        """What a record names, its texts as paths of files that exist."""
        if isinstance(value, list):
            return [self._find_paths(kind, one, where) for one in value]
        if isinstance(value, Mapping) and not value.get("bytes"):
            value = value.get("path")
        if isinstance(value, int):  # a number that names a file
            value = str(value)
        if not isinstance(value, str) or value.startswith("data:"):
            return value
        is_content = kind == "image" and decode_base64_image(value) is not None
        return value if is_content else self.folders[kind].find_path(value, where)


def open_documents(
    rows: DocumentRows,
    layout: DocumentLayout,
    *,
    images: str | None = None,
    videos: str | None = None,
    video_prefix: str = "",
) -> Documents:
    """The documents of rows.

    images, videos: folders that their paths are relative to, the file's own where they are not given. video_prefix: what
    clips are called before their name in a record. Raises `DataError` for rows that lack a field that the layout requires,
    showing the first one, and for two rows of one key.
    """
    if not len(rows):
        raise DataError(f"{rows.folder}: there are no records; write at least one.")
    if missing := layout.list_missing(rows.columns):
        required = [" or ".join((name, *others)) for name, others in layout.required.items()]
        shown = ", ".join(f"{name}: {value!r:.60}" for name, value in rows.read_row(0).items())
        raise DataError(
            f"{rows.describe_origin(0)}: there is no {', '.join(missing)}; expected are records with "
            f"{', '.join(required)}, but the first is {{{shown:.{_SHOWN}}}}."
        )
    roots = MediaRoots.from_settings(rows.folder, images, videos)
    folders: Mapping[VisualKind, MediaFolder] = {
        "image": MediaFolder(roots.image, "image"),
        "video": MediaFolder(roots.video, "video", video_prefix),
    }
    return Documents(rows, layout, roots, folders, _read_keys(rows, layout.find_key(rows.columns)))


def _read_keys(rows: DocumentRows, names: tuple[str, ...]) -> list[str]:
    keys: dict[str, int] = {}
    for number, values in enumerate(rows.read_values(names)):
        is_named = values is not None and bool(names) and None not in values
        key = "/".join(map(str, values)) if values is not None and is_named else f"#{number}"
        if key in keys:
            raise DataError(
                f"{rows.describe_origin(number)}: the key {' / '.join(names)} = {key!r:.200} stands also in "
                f"{rows.describe_origin(keys[key])}; documents need keys of their own, so keep one."
            )
        keys[key] = number
    return list(keys)


def _check_visual(visual: Visual) -> None:
    """Raise `DataError` for a file that is empty or no image; pixels are not decoded, and videos not opened."""
    if visual.kind == "image":
        read_image_size(visual.source, ANY_SIZE)
    elif isinstance(visual.source, str | Path) and not Path(visual.source).is_dir():
        resolve_source(visual.source, visual.kind)


def _name_visual(visual: Visual) -> str:
    """A name that documents with the same image or video share."""
    source = visual.source
    if isinstance(source, bytes):
        return make_digest(source)
    return str(source) if isinstance(source, str | Path) and is_existing_path(source) else ""
