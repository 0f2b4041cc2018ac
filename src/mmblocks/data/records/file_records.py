"""Records of a JSON file by their places in it: read on access, so that a file of any size takes 16 bytes a record.

The places of a large file are found once and kept in the user's cache folder; processes that open the file share them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mmblocks.data.record_errors import to_printable
from mmblocks.errors import DataError
from mmblocks.storage import replace_file

log = logging.getLogger(__name__)

SPACE = b" \t\r\n"
KEPT_FROM_BYTES = 1 << 22
"""Size of a file from which its places are kept; those of a smaller one are found in a moment."""
WINDOW_BYTES = 1 << 20
"""What is read at once of a list; doubled for an element that is longer."""
_HEAD_BYTES = 1 << 16
"""Where a list has to begin."""
_BLOCKS, _BLOCK_BYTES = 32, 1 << 12
"""Parts of a file whose content names what is kept of it, evenly spread, beside its size and times."""
_FORMAT = 1
"""Of kept places; written anew when the same file comes to other places."""
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\n\r]*\[(?:[ \t\n\r]*\])?")
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class FileStamp(NamedTuple):
    """What a file had when its places were found: `content` is a digest of some of its blocks."""

    size: int
    mtime_ns: int
    ctime_ns: int
    content: int

    @classmethod
    def read(cls, file: IO[bytes]) -> FileStamp:
        seen = os.fstat(file.fileno())
        digest = hashlib.sha1(usedforsecurity=False)
        for begin in np.linspace(0, max(0, seen.st_size - _BLOCK_BYTES), _BLOCKS).astype(int).tolist():
            file.seek(begin)
            digest.update(file.read(_BLOCK_BYTES))
        content = int.from_bytes(digest.digest()[:8], "little", signed=True)
        return cls(seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, content)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FileRecords:
    """Records of a file, by number from 0. places: int64 (n, 2), the first byte of each and the one behind it.

    parse: bytes and where they stand to a value. Raises `DataError` for a file that changed since its places were found.
    """

    path: Path
    places: np.ndarray
    stamp: FileStamp
    parse: Callable[[bytes, str], Any]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Any:
        begin, end = self.places[number].tolist()
        with self.path.open("rb", buffering=0) as file:
            seen = os.fstat(file.fileno())
            if (seen.st_size, seen.st_mtime_ns) != self.stamp[:2]:
                raise DataError(f"{self.path}: it has changed since it was opened; start again.")
            raw = os.pread(file.fileno(), end - begin, begin)
        return self.parse(raw, f"{self.path}:record {number}")

    def __repr__(self) -> str:
        return f"{len(self)} records of {to_printable(str(self.path))}"


def open_file_records(
    path: Path, find_places: Callable[[IO[bytes]], array[int] | None], parse: Callable[[bytes, str], Any]
) -> FileRecords | None:
    """The records of a file at the places that are kept, or else that `find_places` finds (None: it holds no such records)."""
    with path.open("rb") as file:
        stamp = FileStamp.read(file)
        kept = _name_kept_places(path) if stamp.size >= KEPT_FROM_BYTES else None
        places = None if kept is None else _read_kept_places(kept, stamp)
        if places is None:
            file.seek(0)
            found = find_places(file)
            if found is None:
                return None
            places = np.frombuffer(found, dtype=np.int64).reshape(-1, 2)
            if kept is not None and FileStamp.read(file) == stamp:
                places = _keep_places(kept, stamp, places)
    return FileRecords(path, places, stamp, parse)


# Places ---------------------------------------------------------------------------------------------------------------


def find_line_places(file: IO[bytes]) -> array[int]:
    """Begin and end of each line that is not blank."""
    places, begin = array("q"), 0
    for line in file:
        end = begin + len(line)
        if line.removeprefix(BOM_UTF8).strip(SPACE):
            places.append(begin)
            places.append(end)
        begin = end
    return places


def find_element_places(file: IO[bytes]) -> array[int] | None:
    """Begin and end of each element of the list that a UTF-8 file holds. None for every other value, and for a list with a
    mistake in it, of which a parser of the whole file says more.
    """
    head = file.read(_HEAD_BYTES)
    opening = _OPENING.match(head)
    if opening is None or json.detect_encoding(head) not in ("utf-8", "utf-8-sig"):
        return None
    places, at, size = array("q"), opening.end(), WINDOW_BYTES
    is_closed = opening[0].endswith(b"]")
    try:
        while not is_closed:
            text, is_last = _read_text(file, at, size)
            spans, used, is_closed = _find_elements(text)
            if not used and is_last:
                return None
            size = WINDOW_BYTES if used else 2 * size
            *ends, used_bytes = _count_bytes_before(text, [*spans, used])
            places.extend(at + end for end in ends)
            at += used_bytes
    except ValueError:  # bytes that are not UTF-8
        return None
    file.seek(at)
    is_blank_behind = not any(chunk.strip(SPACE) for chunk in iter(lambda: file.read(WINDOW_BYTES), b""))
    return places if is_blank_behind else None


def _read_text(file: IO[bytes], at: int, size: int) -> tuple[str, bool]:
    """About `size` bytes from a place on, whole characters, and whether the file ends there."""
    file.seek(at)
    raw = file.read(size)
    is_last = len(raw) < size
    if not is_last:
        lead = next(
            (i for i, byte in enumerate(raw[:-5:-1], start=1) if byte & 0xC0 != 0x80), 1
        )  # the last byte that begins a character
        raw = raw[: len(raw) - lead] if raw[-lead] >= 0x80 else raw
    return raw.decode("utf-8", "surrogatepass"), is_last  # as json.loads decodes


def _find_elements(text: str) -> tuple[list[int], int, bool]:
    """Elements of a list whose text begins in front of one: begins and ends of those that a comma or the list's end follows,
    the characters up to there, and whether the list ends there.
    """
    spans: list[int] = []
    used = 0
    while True:
        begin = _skip_space(text, used)
        try:
            _, end = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):  # a mistake, or the rest of the element is behind this text
            return spans, used, False
        behind = _skip_space(text, end)
        if text[behind : behind + 1] not in (",", "]"):
            return spans, used, False
        spans += (begin, end)
        used = behind + 1
        if text[behind] == "]":
            return spans, used, True


def _skip_space(text: str, begin: int) -> int:
    return _WHITESPACE.match(text, begin).end()  # type: ignore[union-attr]  # it matches everywhere


def _count_bytes_before(text: str, characters: list[int]) -> list[int]:
    """How many bytes of UTF-8 stand in front of characters of a text."""
    if text.isascii():
        return characters
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])[characters].tolist()


# Kept places ----------------------------------------------------------------------------------------------------------


def _name_kept_places(path: Path) -> Path | None:
    """The file for the places of a file; None where the user has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    except (OSError, RuntimeError):
        return None
    return cache / "mmblocks" / "records" / f"{name}.npy"


def _make_head(stamp: FileStamp, number: int) -> np.ndarray:
    """(3, 2) int64 in front of kept places: what they belong to, and how many there are."""
    return np.array([_FORMAT, number, *stamp], dtype=np.int64).reshape(3, 2)


def _read_kept_places(kept: Path, stamp: FileStamp) -> np.ndarray | None:
    """Places that were kept of a file with this stamp, mapped; None where there are none."""
    try:
        table = np.load(kept, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError):
        return None
    is_table = table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == 2 and len(table) >= 3
    if not is_table or not np.array_equal(table[:3], _make_head(stamp, len(table) - 3)):
        return None
    return table[3:]


def _keep_places(kept: Path, stamp: FileStamp, places: np.ndarray) -> np.ndarray:
    """The same places, mapped from where they are now kept; as they are where nothing can be written."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(kept) as file:
            np.save(file, np.concatenate([_make_head(stamp, len(places)), places]), allow_pickle=False)
    except OSError as cause:
        log.info("%s: places of records cannot be kept (%s); each process finds them itself.", kept, cause)
        return places
    mapped = _read_kept_places(kept, stamp)
    return places if mapped is None else mapped
