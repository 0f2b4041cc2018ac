"""JSON and JSON lines of questions: a list, one record a line, a list under a key, or an object of records by their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmblocks.data.records.file_records import FileRecords
from mmblocks.data.records.json_records import format_id, open_json, refuse_duplicates
from mmblocks.errors import DataError
from mmblocks.eval.documents.rows import Key, collect_values


@dataclass(frozen=True, slots=True)
class JsonRows:
    """Records of one file.

    ids: the keys of an object of records; each stands in its row as `id`, if that has none. added: fields of all rows.
    """

    path: Path
    records: Sequence[Any] | FileRecords
    ids: Sequence[str] | None = None
    added: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def columns(self) -> Sequence[str]:
        return list(self.read_row(0)) if len(self) else []

    def __len__(self) -> int:
        return len(self.records)

    def read_row(self, number: int) -> Mapping[str, Any]:
        record, where = self.records[number], self.describe_origin(number)
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: a document is an object with its fields, not {record!r:.80}.")
        refuse_duplicates(record, f"{where}{format_id(record)}")
        named = {} if self.ids is None else {"id": self.ids[number]}
        return {**named, **self.added, **record}

    def read_values(self, names: Sequence[str]) -> list[Key | None]:
        return collect_values(self.read_row, len(self), names)

    def describe_origin(self, number: int) -> str:
        return f"{self.path}:record {number}"


def open_json_rows(path: Path, added: Mapping[str, Any] | None = None) -> JsonRows:
    """The records of a file; `added` fields stand in each. Raises `DataError` for JSON that holds no records."""
    added = added or {}
    try:
        content = open_json(path)
        if isinstance(content, FileRecords) and len(content):
            content[0]
    except DataError as fault:
        line = _read_first_line(path)
        raise DataError(f"{fault} Its first line: {line!r:.120}." if line else str(fault)) from fault
    if isinstance(content, list | FileRecords):
        return JsonRows(path, content, added=added)
    if isinstance(content, Mapping):
        refuse_duplicates(content, str(path))
        if content and all(isinstance(value, Mapping) for value in content.values()):
            return JsonRows(path, list(content.values()), list(content), added)
        lists = [value for value in content.values() if _holds_objects(value)]
        if len(lists) == 1:
            return JsonRows(path, lists[0], added=added)
    what = f"an object with the keys {', '.join(content)}" if isinstance(content, Mapping) else f"{content!r:.80}"
    raise DataError(
        f"{path}: it holds {what:.300}; documents are a list of records, one record a line, or an object of records by id."
    )


def _read_first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.readline(1000).decode("utf-8", errors="replace").strip()


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)
