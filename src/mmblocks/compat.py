"""What differs between versions of the packages that mmblocks stands on, each told by looking at what is there.

A function here looks at a signature or an attribute, never at a version number, so that it holds for versions that are
not out yet and for parts that a version has not renamed. Nothing is imported before it is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

CACHE_KEYWORDS = ("cache", "past_key_values")
"""What transformers calls a key-value cache: the second until 5.23, the first since."""


def cache_keyword(module: Any) -> str:
    """The keyword by which a model, decoder layer or attention of transformers takes its key-value cache.

    Raises `AttributeError` where it takes none by a known name.
    """
    return _cache_keyword(type(module).forward)


@cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    taken = inspect.signature(forward).parameters
    for name in CACHE_KEYWORDS:
        if name in taken:
            return name
    raise AttributeError(f"{forward.__qualname__} takes no key-value cache by the name of {' or '.join(CACHE_KEYWORDS)}")
