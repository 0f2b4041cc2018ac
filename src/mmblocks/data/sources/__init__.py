"""Where conversations come from. A source is a sequence: `len(source)` conversations, `source[i]` one of them.

Sources for training on preferences hold pairs of conversations instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from mmblocks.conversation import Item
from mmblocks.data.record_errors import name_errors
from mmblocks.registry import Registry

ItemT = TypeVar("ItemT", bound=Item)


class Source(Protocol):
    """A fixed sequence of conversations or pairs; `source[i]` is the same every time.

    It may also have `origin(i)`, where record i stands ("file:record 3", what the name of its conversation begins with),
    and `is_made`: true where its settings alone decide its records, which no file then changes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


def describe_origin(source: Source, index: int) -> str | None:
    """Where a record of a source stands, told without reading it; None where the source does not say."""
    say = getattr(source, "describe_origin", None)
    return None if say is None else say(index)


def is_synthetic(source: Source) -> bool:
    """Whether a source makes its records, so that nothing but its settings decides them."""
    return getattr(source, "is_synthetic", False)


class NamedRecords(Generic[ItemT]):
    """What sources of files share: any error of a record names where it stands. They give `origin` and `_read`."""

    __slots__ = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> ItemT:
        number = range(len(self))[index]
        with name_errors(self.describe_origin(number)):
            return self._read_record(number)

    def __iter__(self) -> Iterator[ItemT]:
        return (self[i] for i in range(len(self)))

    def describe_origin(self, number: int) -> str:
        """Where record `number` stands, told without reading it."""
        raise NotImplementedError

    def _read_record(self, number: int) -> ItemT:
        raise NotImplementedError


sources: Registry[Any] = Registry("source", "mmblocks.data.sources")
