"""Records of .json and .jsonl files, by number from 0; a fault names the file and the record."""

from __future__ import annotations

import json
import os
import re
from array import array
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any

from mmblocks.data.record_errors import to_printable
from mmblocks.data.records.file_records import (
    SPACE,
    FileRecords,
    find_element_places,
    find_line_places,
    open_file_records,
)
from mmblocks.errors import DataError
from mmblocks.keys import ANSWERS

_NO_SPACE = re.compile(rb"[^ \t\r\n]")
_LONGEST_ID = 100


def open_records(path: Path) -> Sequence[Any] | FileRecords:
    """The records of a .json or .jsonl file, a list or one record a line, each read on access.

    The content decides which of the two it is, not the name.
    """
    records = open_json(path)
    if isinstance(records, dict) and records.keys() & set(ANSWERS):
        return [records]
    if not isinstance(records, list | FileRecords):
        keys = f" with the keys {', '.join(records)}" if isinstance(records, dict) and records else ""
        raise DataError(
            f"{path}: it holds one {type(records).__name__}{keys}; a file of records is a list of them, or holds one a line."
        )
    return records


def open_json(path: Path) -> Any:
    """What a .json or .jsonl file holds: `FileRecords` of one value a line or of a list in UTF-8, or else its one value."""
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(
            f"{path}: its name ends in {path.suffix!r}; LLaVA records are read from .json and .jsonl files."
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if (records := open_file_records(path, _find_places, parse_json)) is not None:
        return records
    raw = path.read_bytes()
    if not raw.removeprefix(BOM_UTF8).strip(SPACE):
        raise DataError(f"{path}: it is empty; write a list of records, or one record a line.")
    return parse_json(raw, str(path))


def _find_places(file: IO[bytes]) -> array[int] | None:
    has_lines = _has_record_lines(file)
    file.seek(0)
    return find_line_places(file) if has_lines else find_element_places(file)


def _has_record_lines(file: IO[bytes]) -> bool:
    """Whether a file holds one record a line: several JSON values, or one that is a record and no list of records."""
    named_so = Path(file.name).suffix.lower() == ".jsonl"
    if not os.fstat(file.fileno()).st_size:
        return named_so
    with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        begin, end = _find_first_line(content)
        more = _NO_SPACE.search(content, end) is not None
        if named_so and content[begin : begin + 2] in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise DataError(f"{file.name}: it is encoded in UTF-16; save it as UTF-8.")
        if not (more or named_so):
            return False
        first = content[begin:end]
    try:
        value = json.loads(first) if first else None
    except (ValueError, RecursionError):  # a list or object over several lines, or a line with a mistake
        return named_so and not first.removeprefix(BOM_UTF8).strip(SPACE).startswith(b"[")
    # A list of messages is one record, not a list of records.
    is_record = not isinstance(value, list) or any(isinstance(v, dict) and v.keys() & {"role", "from"} for v in value)
    return more or is_record


def _find_first_line(content: mmap) -> tuple[int, int]:
    """Begin and end of the first line that is not blank; both are the end of a file that has none."""
    begin, size = 0, len(content)
    while begin < size:
        end = content.find(b"\n", begin) + 1 or size
        is_marked = content[begin : begin + len(BOM_UTF8)] == BOM_UTF8
        if _NO_SPACE.search(content, begin + len(BOM_UTF8) * is_marked, end) is not None:
            return begin, end
        begin = end
    return size, size


def parse_json(raw: bytes | str, where: str) -> Any:
    """JSON as plain values; an object in which a key stands twice is an `ObjectWithDuplicates`."""
    try:
        return json.loads(raw, object_pairs_hook=ObjectWithDuplicates.from_pairs)
    except ValueError as fault:  # bad JSON, or bytes that are not UTF-8
        cure = ""
        if isinstance(fault, json.JSONDecodeError):
            before, after = fault.doc[: fault.pos].rstrip(), fault.doc[fault.pos :].strip()
            if before.endswith(",") and after[:1] in ("]", "}"):
                cure = f" Remove the comma before {after[0]!r}."
            elif fault.msg.startswith("Illegal trailing comma"):
                cure = " Remove the comma before the closing bracket."
            elif fault.msg == "Extra data":
                comma = ", with no comma between them" if after.startswith(",") else ""
                cure = f" Write a list of records, or one record a line{comma}."
        raise DataError(f"{where}: not JSON: {fault}.{cure}") from fault
    except RecursionError as fault:
        raise DataError(f"{where}: its lists or objects are nested too deeply; write flat records.") from fault


def format_id(record: object) -> str:
    """' (id ...)' of a record that has one, for its name in messages."""
    name = record.get("id") if isinstance(record, Mapping) else None
    return f" (id {to_printable(str(name)[:_LONGEST_ID])})" if isinstance(name, str | int | float) else ""


class ObjectWithDuplicates(dict[str, Any]):
    """A JSON object in which `duplicate_key` stands twice."""

    duplicate_key: str = ""

    @classmethod
    def from_pairs(cls, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A plain dict where every key stands once."""
        plain = dict(pairs)
        if len(plain) == len(pairs):
            return plain
        found = cls(plain)
        counts = Counter(key for key, _ in pairs)
        found.duplicate_key = next(key for key in plain if counts[key] > 1)
        return found


def refuse_duplicates(record: object, where: str) -> None:
    """Raise `DataError` for an object in which a key stands twice: one of its values is lost."""
    if isinstance(record, ObjectWithDuplicates):
        raise DataError(f"{where}: the key {record.duplicate_key!r} stands twice; keep one.")
