"""Rows with fields that follow from their others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.eval.documents.rows import DocumentRows


@dataclass(frozen=True, slots=True)
class ExtendedRows:
    """Rows with the fields `names`, which `compute` makes of a row and the name of its place."""

    rows: DocumentRows
    names: tuple[str, ...]
    compute: Callable[[Mapping[str, Any], str], Mapping[str, Any]]

    @property
    def folder(self) -> Path:
        return self.rows.folder

    @property
    def columns(self) -> Sequence[str]:
        return [*self.rows.columns, *self.names]

    def __len__(self) -> int:
        return len(self.rows)

    def read_row(self, number: int) -> Mapping[str, Any]:
        row = self.rows.read_row(number)
        return {**row, **self.compute(row, self.describe_origin(number))}

    def read_values(self, names: Sequence[str]) -> Sequence[tuple[object, ...] | None]:
        return self.rows.read_values(names)  # keys are fields of the file

    def describe_origin(self, number: int) -> str:
        return self.rows.describe_origin(number)
