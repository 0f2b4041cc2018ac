"""Some rows of a file, or the rows of several files one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmblocks.errors import DataError
from mmblocks.eval.documents.layout import is_absent
from mmblocks.eval.documents.rows import DocumentRows


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The rows of these numbers."""

    rows: DocumentRows
    numbers: Sequence[int]

    @property
    def folder(self) -> Path:
        return self.rows.folder

    @property
    def columns(self) -> Sequence[str]:
        return self.rows.columns

    def __len__(self) -> int:
        return len(self.numbers)

    def read_row(self, number: int) -> Mapping[str, Any]:
        return self.rows.read_row(self.numbers[number])

    def read_values(self, names: Sequence[str]) -> list[tuple[object, ...] | None]:
        values = self.rows.read_values(names)
        return [values[number] for number in self.numbers]

    def describe_origin(self, number: int) -> str:
        return self.rows.describe_origin(self.numbers[number])


def select_rows(rows: DocumentRows, field: str) -> SelectedRows:
    """The rows in which a field holds something; those that cannot be read stay, for their fault is counted."""
    if field not in rows.columns:
        raise DataError(f"{rows.describe_origin(0)}: there is no field {field!r}, by which records are chosen.")
    values = rows.read_values([field])
    return SelectedRows(rows, [i for i, value in enumerate(values) if value is None or not is_absent(value[0])])


@dataclass(frozen=True, slots=True)
class ChainedRows:
    """The rows of several files, each with the `part` of its file and its `number` in it."""

    parts: Mapping[str, DocumentRows]
    folder: Path

    @property
    def columns(self) -> Sequence[str]:
        return list(dict.fromkeys(["part", "number", *(name for rows in self.parts.values() for name in rows.columns)]))

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.parts.values())

    def read_row(self, number: int) -> Mapping[str, Any]:
        part, inner = self._find_part(number)
        return {"part": part, "number": inner, **self.parts[part].read_row(inner)}

    def read_values(self, names: Sequence[str]) -> list[tuple[object, ...] | None]:
        values: list[tuple[object, ...] | None] = []
        for part, rows in self.parts.items():
            for number, inner in enumerate(rows.read_values([n for n in names if n in rows.columns])):
                by_name = {"part": part, "number": number}
                by_name |= dict(zip([n for n in names if n in rows.columns], inner or (), strict=False))
                values.append(None if inner is None else tuple(by_name.get(name) for name in names))
        return values

    def describe_origin(self, number: int) -> str:
        part, inner = self._find_part(number)
        return self.parts[part].describe_origin(inner)

    def _find_part(self, number: int) -> tuple[str, int]:
        names, ends = list(self.parts), list(accumulate(len(rows) for rows in self.parts.values()))
        place = bisect_right(ends, number)
        return names[place], number - (ends[place - 1] if place else 0)
