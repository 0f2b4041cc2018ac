"""Clips that are not to be opened again: a JSON-lines file that people may edit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mmblocks.data.records.lines import append_lines, read_lines


class Place(NamedTuple):
    """A clip as its line names it, and the file that it is in: itself, or the archive around it."""

    clip: str
    file: Path


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Lines of clip, size and mtime_ns of its file, reason and when.

    A clip whose size or time of change is another than on its line is a new clip; deleting a line frees its clip.
    """

    list: Path

    def line_of(self, place: Place) -> dict[str, Any] | None:
        """What is known against a clip, None for nothing. Lines that other processes add are seen at once."""
        try:
            state = self.list.stat()
        except FileNotFoundError:
            return None
        lines = _lines(self.list, state.st_ino, state.st_size, state.st_mtime_ns)
        return lines.get(_key(place)) if lines else None

    def add(self, place: Place, reason: str) -> bool:
        """Note a clip, unless its file is not there (any more)."""
        clip, size, mtime_ns = key = _key(place)
        if key != (clip, *_NO_FILE):
            when = datetime.now(UTC).isoformat(timespec="seconds")
            line = {"clip": clip, "size": size, "mtime_ns": mtime_ns, "reason": reason, "when": when}
            append_lines(self.list, [line])
        return key != (clip, *_NO_FILE)


Key = tuple[str, int, int]
_NO_FILE = (-1, -1)


def _key(place: Place) -> Key:
    try:
        state = place.file.stat()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return (place.clip, *_NO_FILE)
    return (place.clip, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _lines(file: Path, inode: int, size: int, mtime_ns: int) -> dict[Key, dict[str, Any]]:
    """The lines by clip, read once for each state of the file."""
    return {(str(line.get("clip")), line.get("size", -1), line.get("mtime_ns", -1)): line for line in read_lines(file)}
