"""Where conversations come from. A source is a sequence: `len(source)` conversations, `source[i]` one of them.

Sources for training on preferences hold pairs of conversations instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mmblocks.conversation import Item
from mmblocks.data.record_errors import name_errors
from mmblocks.faults import Fault
from mmblocks.registry import Registry

ItemT = TypeVar("ItemT", bound=Item)


class Source(Protocol):
    """A fixed sequence of conversations or pairs; `source[i]` is the same every time.

    It may also have `describe_origin(i)`, where record i stands ("file:record 3", with which the origin of its conversation
    begins), and `is_synthetic`: true where its settings alone decide its records, which no file then changes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


@runtime_checkable
class SelfCheckedSource(Protocol):
    """A class of sources that says what is wrong with its settings before it is built. It reads no record."""

    @staticmethod
    def find_faults(settings: Mapping[str, Any]) -> list[Fault]: ...


def describe_origin(source: Source, index: int) -> str | None:
    """Where a record of a source stands, without reading it; None where the source does not say."""
    describe = getattr(source, "describe_origin", None)
    return None if describe is None else describe(index)


def is_synthetic(source: Source) -> bool:
    """Whether a source makes its records, so that nothing but its settings decides them."""
    return getattr(source, "is_synthetic", False)


class NamedRecords(Generic[ItemT]):
    """Base of sources of files: any error of a record names where it stands. They define `describe_origin` and `read_record`."""

    __slots__ = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> ItemT:
        number = range(len(self))[index]
        with name_errors(self.describe_origin(number)):
            return self.read_record(number)

    def __iter__(self) -> Iterator[ItemT]:
        return (self[i] for i in range(len(self)))

    def describe_origin(self, number: int) -> str:
        """Where record `number` stands, without reading it."""
        raise NotImplementedError

    def read_record(self, number: int) -> ItemT:
        """Record `number`, not yet counted from the end."""
        raise NotImplementedError


sources: Registry[Any] = Registry("source", "mmblocks.data.sources")
