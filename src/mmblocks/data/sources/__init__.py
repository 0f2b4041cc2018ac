"""Where conversations come from. A source is a sequence: `len(source)` conversations, `source[i]` one of them.

Sources for training on preferences hold pairs of conversations instead.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mmblocks.components import has_capability
from mmblocks.conversation import Item
from mmblocks.data.record_errors import name_errors
from mmblocks.faults import Fault
from mmblocks.registry import Registry

ItemT = TypeVar("ItemT")


class Source(Protocol):
    """A fixed sequence of conversations or pairs; `source[i]` is the same every time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


@runtime_checkable
class LocatedSource(Protocol):
    """`describe_origin`: it names the place of a record ("file:record 3") without reading it."""

    def describe_origin(self, number: int, /) -> str | None:
        """The beginning of the name of conversation `number`."""
        ...


@runtime_checkable
class SyntheticSource(Protocol):
    """`is_synthetic`: its settings alone decide its records, which no file changes."""

    is_synthetic: bool


@runtime_checkable
class SelfCheckedSource(Protocol):
    """`find_faults`: its class finds what is wrong with its settings and files before it is built, and reads no record."""

    @staticmethod
    def find_faults(settings: Mapping[str, Any]) -> list[Fault]: ...


def describe_origin(source: Source, index: int) -> str | None:
    """The place of a record, found without reading it; None for a source that does not name it."""
    describe = getattr(source, "describe_origin", None)  # of a `LocatedSource`; isinstance takes 20 us of every record
    return None if describe is None else describe(index)


def is_synthetic(source: Source) -> bool:
    """Whether the settings of a source alone decide its records."""
    return has_capability(source, SyntheticSource)


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


sources: Registry[Any] = Registry(
    "source", "mmblocks.data.sources", capabilities=(LocatedSource, SyntheticSource, SelfCheckedSource)
)
