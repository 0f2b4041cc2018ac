"""Where conversations come from. A source is a sequence: `len(source)` conversations, `source[i]` one of them."""

from __future__ import annotations

from typing import Any, Protocol

from mmblocks.conversation import Conversation
from mmblocks.registry import Registry


class Source(Protocol):
    """A fixed sequence of conversations; `source[i]` is the same conversation every time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


sources: Registry[Any] = Registry("source", "mmblocks.data.sources")
