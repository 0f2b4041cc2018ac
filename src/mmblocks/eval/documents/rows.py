"""Rows of a published file, by number from 0: the one interface of all formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmblocks.errors import DataError

Key = tuple[object, ...]


class DocumentRows(Protocol):
    """Rows of one file, or of several that belong together."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of their fields; of JSON those of the first row."""
        ...

    @property
    def folder(self) -> Path:
        """What paths in them are relative to."""
        ...

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


def collect_values(
    read_row: Callable[[int], Mapping[str, object]], total: int, names: Sequence[str]
) -> list[Key | None]:
    """The values of some fields of every row; None for one whose fault is raised when it is read."""
    values: list[Key | None] = []
    for number in range(total):
        try:
            row = read_row(number)
        except DataError:
            values.append(None)
        else:
            values.append(tuple(row.get(name) for name in names))
    return values
