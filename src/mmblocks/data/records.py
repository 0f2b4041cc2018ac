"""Records of .json and .jsonl files, by number from 0; a fault names the file and the record."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmblocks.errors import DataError


def open_records(path: Path) -> Sequence[Any] | Lines:
    """The records of a file: a .json file is held in memory, a .jsonl file is read record by record when asked."""
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(
            f"{path}: its name ends in {path.suffix!r}; LLaVA records are read from .json and .jsonl files."
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.suffix == ".jsonl":
        return Lines(path)
    records = parsed(path.read_bytes(), str(path))
    if not isinstance(records, list):
        raise DataError(f"{path}: it holds one {type(records).__name__}; a .json file of LLaVA records is a list.")
    return records


def parsed(raw: bytes | str, where: str) -> Any:
    """JSON as plain values; an object in which a key stands twice is a `WithTwins`."""
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except ValueError as fault:  # bad JSON, or bytes that are not UTF-8
        raise DataError(f"{where}: not JSON: {fault}.") from fault


def called(record: Any) -> str:
    """' (id ...)' of a record that has one, for its name in messages."""
    name = record.get("id") if isinstance(record, Mapping) else None
    return "" if name is None else f" (id {name})"


class WithTwins(dict[str, Any]):
    """A JSON object in which the key `twin` stood twice."""

    twin: str = ""


def refuse_twins(record: Any, where: str) -> None:
    """Raise `DataError` for an object in which a key stood twice: one of its values is lost."""
    if isinstance(record, WithTwins):
        raise DataError(f"{where}: the key {record.twin!r} stands twice; keep one.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    keys = [key for key, _ in pairs]
    twins = WithTwins(plain)
    twins.twin = next(key for key in keys if keys.count(key) > 1)
    return twins


class Lines:
    """Records of a .jsonl file, read when asked for; blank lines are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begins = array("q")
        at = 0
        with path.open("rb") as file:
            for line in file:
                if not line.isspace():
                    self._begins.append(at)
                at += len(line)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, number: int) -> Any:
        with self._path.open("rb") as file:
            file.seek(self._begins[number])
            return parsed(file.readline(), f"{self._path}:record {number}")
