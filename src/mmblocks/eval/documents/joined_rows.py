"""Rows of two files that belong together: questions in one, answers or images in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.errors import DataError
from mmblocks.eval.documents.rows import DocumentRows


@dataclass(frozen=True, slots=True)
class JoinedRows:
    """Rows with the fields of those rows of another file that have the same value; where both have a field, the first's stays.

    fields: the names of the values, in `first` and in `second`. renamed: what fields of the second are called here.
    """

    first: DocumentRows
    second: DocumentRows
    fields: tuple[str, str]
    numbers: Mapping[str, int]
    renamed: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return self.first.folder

    @property
    def columns(self) -> Sequence[str]:
        return list(
            dict.fromkeys([*self.first.columns, *(self.renamed.get(name, name) for name in self.second.columns)])
        )

    def __len__(self) -> int:
        return len(self.first)

    def read_row(self, number: int) -> Mapping[str, Any]:
        row, where = self.first.read_row(number), self.describe_origin(number)
        name, value = self.fields[0], row.get(self.fields[0])
        if str(value) not in self.numbers:
            raise DataError(
                f"{where}: {name}={value!r:.80} stands in no record of {self.second.describe_origin(0)} and those after it as "
                f"{self.fields[1]!r}; add the record."
            )
        beside = self.second.read_row(self.numbers[str(value)])
        return {**{self.renamed.get(other, other): content for other, content in beside.items()}, **row}

    def read_values(self, names: Sequence[str]) -> list[tuple[object, ...] | None]:
        own = [name for name in names if name in self.first.columns]
        others = [name for name in names if name not in own]
        beside = self.second.read_values(others)  # keys are never renamed
        joined: list[tuple[object, ...] | None] = []
        for key, values in zip(self.first.read_values([self.fields[0]]), self.first.read_values(own), strict=True):
            number = None if key is None else self.numbers.get(str(key[0]))
            rest = None if number is None else beside[number]
            if values is None or rest is None:
                joined.append(None)
            else:
                by_name = {**dict(zip(own, values, strict=True)), **dict(zip(others, rest, strict=True))}
                joined.append(tuple(by_name[name] for name in names))
        return joined

    def describe_origin(self, number: int) -> str:
        return self.first.describe_origin(number)


def join_rows(
    first: DocumentRows,
    second: DocumentRows,
    pairs: Sequence[tuple[str, str]],
    renamed: Mapping[str, str] | None = None,
) -> JoinedRows:
    """Join over the first pair of field names that both have. renamed: other names for fields of the second. Raises `DataError` where none is, or where a value stands twice."""
    fields = next((pair for pair in pairs if pair[0] in first.columns and pair[1] in second.columns), None)
    if fields is None:
        wanted = " or ".join(sorted({name for pair in pairs for name in pair}))
        raise DataError(
            f"{second.describe_origin(0)}: no field tells to which record of {first.describe_origin(0)} it belongs; both need "
            f"{wanted}. It has {', '.join(second.columns)}."
        )
    numbers: dict[str, int] = {}
    for number, values in enumerate(second.read_values([fields[1]])):
        if values is not None and numbers.setdefault(str(values[0]), number) != number:
            raise DataError(
                f"{second.describe_origin(number)}: {fields[1]}={values[0]!r:.80} stands also in "
                f"{second.describe_origin(numbers[str(values[0])])}; keep one."
            )
    return JoinedRows(first, second, fields, numbers, renamed or {})
