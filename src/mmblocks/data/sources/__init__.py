"""Where conversations come from. A source is a sequence: `len(source)` conversations, `source[i]` one of them.

Sources for training on preferences hold pairs of conversations instead.
"""

from __future__ import annotations

from typing import Any, Protocol

from mmblocks.conversation import Item
from mmblocks.registry import Registry


class Source(Protocol):
    """A fixed sequence of conversations or pairs; `source[i]` is the same every time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


sources: Registry[Any] = Registry("source", "mmblocks.data.sources")
