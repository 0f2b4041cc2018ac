from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class LazyTextTokenizer:
    """A text tokenizer that is read at its first use: `LazyTextTokenizer(read)()`.

    Pickled, it is the tokenizer alone, so a data worker does not receive the backbone that would read it.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    @classmethod
    def from_backbone(cls, backbone: object) -> LazyTextTokenizer:
        return cls(partial(getattr, backbone, "text_tokenizer"))

    def __call__(self) -> Any:
        return self._read()

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyTextTokenizer, (partial(_return_tokenizer, self()),)


def _return_tokenizer(tokenizer: object) -> object:
    return tokenizer
