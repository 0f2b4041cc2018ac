"""Videos that are not to be opened again: a JSON-lines file that people may edit."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mmblocks.data.records.json_lines import append_lines, read_lines


class VideoLocation(NamedTuple):
    """A video as its line names it, and the file that it is in: itself, or the archive around it."""

    video: str
    file: Path


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Lines of video, size and mtime_ns of its file, reason and when.

    A video whose size or time of change is another than on its line is a new video; deleting a line frees its video.
    """

    list: Path

    def find_line(self, place: VideoLocation) -> dict[str, Any] | None:
        """The line of a video, None where there is none. Lines that other processes add are seen at once."""
        try:
            state = self.list.stat()
        except FileNotFoundError:
            return None
        lines = _read_lines_by_key(self.list, state.st_ino, state.st_size, state.st_mtime_ns)
        return lines.get(_make_key(place)) if lines else None

    def add_video(self, place: VideoLocation, reason: str) -> bool:
        """Add a video to the list, unless its file does not exist (any more)."""
        video, size, mtime_ns = key = _make_key(place)
        if key != (video, *_NO_FILE):
            when = datetime.now(UTC).isoformat(timespec="seconds")
            line = {"clip": video, "size": size, "mtime_ns": mtime_ns, "reason": reason, "when": when}
            append_lines(self.list, [line])
        return key != (video, *_NO_FILE)


QuarantineKey = tuple[str, int, int]
_NO_FILE = (-1, -1)


def _make_key(place: VideoLocation) -> QuarantineKey:
    try:
        state = place.file.stat()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return (place.video, *_NO_FILE)
    return (place.video, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_lines_by_key(file: Path, inode: int, size: int, mtime_ns: int) -> dict[QuarantineKey, dict[str, Any]]:
    """The lines by video, read once for each state of the file."""
    return {(str(line.get("clip")), line.get("size", -1), line.get("mtime_ns", -1)): line for line in read_lines(file)}
