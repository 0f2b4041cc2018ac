"""Parquet and arrow files of the hub's data sets; images stay bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.data.records.tables import load_table
from mmblocks.errors import DataError

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*\.parquet|(.+)\.parquet")


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a table of the `datasets` library."""

    name: str
    table: Any
    folder: Path

    @property
    def columns(self) -> Sequence[str]:
        return self.table.column_names

    def __len__(self) -> int:
        return len(self.table)

    def read_row(self, number: int) -> Mapping[str, Any]:
        return self.table[number].to_pylist()[0]

    def read_values(self, names: Sequence[str]) -> list[tuple[object, ...] | None]:
        if not names or not len(self):
            return [()] * len(self)
        columns = self.table.select_columns(list(names))[:].to_pydict()
        return list(zip(*(columns[name] for name in names), strict=True))

    def describe_origin(self, number: int) -> str:
        return f"{self.name}:row {number}"


def open_table_rows(path: str, split: str) -> TableRows:
    """Rows of a file, of a pattern, of the shards of one split in a folder, or of a folder that `save_to_disk` wrote."""
    folder = Path(path)
    files: str | tuple[str, ...] = path
    if folder.is_dir() and not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        files = _find_shards(folder, split)
    table, root = load_table(files, split or "test", None)
    return TableRows(path, table.with_format("arrow"), folder if folder.is_dir() else root)


def _find_shards(folder: Path, split: str) -> tuple[str, ...]:
    """The parquet files of a split below a folder, named as the hub does: test-00000-of-00002.parquet or test.parquet."""
    by_split: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        if (shard := _SHARD.fullmatch(file.name)) is not None:
            by_split.setdefault(shard[1] or shard[2], []).append(str(file))
    if not by_split:
        raise DataError(
            f"{folder}: this folder holds no parquet files and no saved data set; name the file of your data."
        )
    if not split and len(by_split) == 1:
        return tuple(next(iter(by_split.values())))
    if split not in by_split:
        wanted = f"there is no split {split!r}" if split else "it holds several splits"
        raise DataError(f"{folder}: {wanted}; write split= one of {', '.join(by_split)}.")
    return tuple(by_split[split])
