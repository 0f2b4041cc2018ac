"""Rows of a published file, by number from 0: the one interface of all formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmblocks.data.records.file_patterns import find_files
from mmblocks.errors import DataError
from mmblocks.eval.documents.json_rows import open_json_rows
from mmblocks.eval.documents.table_rows import open_table_rows
from mmblocks.eval.documents.tsv_rows import DELIMITERS, TsvRows

Key = tuple[object, ...]
_READERS = ".json, .jsonl, .parquet, .arrow, .tsv, .csv, or a folder of parquet files"


class DocumentRows(Protocol):
    """Rows of one file, or of several that belong together.

    columns: the names of their fields; of JSON those of the first row. folder: what paths in them are relative to.
    """

    columns: Sequence[str]
    folder: Path

    def __len__(self) -> int: ...

    def read_row(self, number: int, /) -> Mapping[str, Any]:
        """A row with its media as they are stored. Raises `DataError` where it cannot be read."""
        ...

    def read_values(self, names: Sequence[str], /) -> Sequence[Key | None]:
        """The values of some fields of every row, None for a row that cannot be read; no media are read for it."""
        ...

    def describe_origin(self, number: int, /) -> str:
        """Where row `number` stands, without reading it."""
        ...


def open_rows(path: str, split: str = "") -> DocumentRows:
    """The rows of a file, a pattern or a folder. split: which part of a folder that holds several."""
    given = Path(path)
    if given.is_dir() or given.suffix.lower() in (".parquet", ".arrow"):
        return open_table_rows(path, split)
    files = find_files(path)
    suffix = files[0].suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return open_table_rows(path, split)
    if len(files) > 1:
        raise DataError(f"{path}: it matches {len(files)} files; name one, or a pattern of parquet files.")
    if suffix in (".json", ".jsonl"):
        return open_json_rows(files[0])
    if suffix in DELIMITERS:
        return TsvRows(files[0])
    raise DataError(f"{path}: nothing reads documents from a file of the suffix {suffix!r}; write {_READERS}.")
