"""Folders of clips and images that records name without a suffix or a sub-folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mmblocks.data.media.files import IMAGE_SUFFIXES, explain_url_refusal, is_existing_path
from mmblocks.errors import DataError
from mmblocks.settings import format_suggestion
from mmblocks.shapes import VisualKind

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".gif")
SUFFIXES: Mapping[VisualKind, tuple[str, ...]] = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}


@dataclass(frozen=True)
class MediaFolder:
    """Where the images or videos of a benchmark lie. prefix: what files are called before a record's name, such as "v_"."""

    folder: Path
    kind: VisualKind
    prefix: str = field(default="")

    def find_path(self, name: str, where: str) -> str:
        """The path, relative to the folder, that a record's name means. Raises `DataError` where no or several files fit."""
        for one in (name, self.prefix + name):
            for suffix in ("", *SUFFIXES[self.kind]):
                if is_existing_path(self.folder / f"{one}{suffix}"):
                    return f"{one}{suffix}"
        found = next((self._by_name[one] for one in (name, self.prefix + name) if one in self._by_name), [])
        if len(found) > 1:
            raise DataError(
                f"{where}: {name!r:.200} may be {' or '.join(found[:3])} in {self.folder}; write the sub-folder too."
            )
        if found:
            return found[0]
        if (refusal := explain_url_refusal(name, self.kind)) is not None:
            raise DataError(f"{where}: {name:.200}: {refusal}")
        stems = [one for one in self._by_name if "." not in one]
        raise DataError(
            f"{where}: the {self.kind} {name!r:.200} is not in {self.folder}; add the file, or name its folder as "
            f"{self.kind}s=.{_suggest_name(name, stems)}"
        )

    @cached_property
    def _by_name(self) -> Mapping[str, list[str]]:
        """Paths of all files below the folder, by their names with and without suffix."""
        names: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES[self.kind]:
                for name in {path.name, path.stem}:
                    names[name].append(str(path.relative_to(self.folder)))
        return dict(names)


def _suggest_name(name: str, known: list[str]) -> str:
    hint, _, _ = format_suggestion(Path(name).stem, known).partition(" Known:")
    return f"{hint} It holds {len(known)} {'file' if len(known) == 1 else 'files'} of that kind."
