"""File names with {a,b}, {000..012} and *: one path or many."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmblocks.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def files_of(names: str | Sequence[str], *, within: str = "") -> list[Path]:
    """The files that names stand for, in their order; braces as they are written, `*` and `?` sorted.

    within: what to look for where a name is a folder ("*.tar"), in its subfolders too. Raises `DataError` for a name
    that nothing answers to.
    """
    names = [names] if isinstance(names, str) else names
    found = [file for name in names for one in spelled_out(name) for file in _matching(one, within)]
    if not found:
        raise DataError("no file is named; write a path.")
    return found


def spelled_out(name: str) -> Iterator[str]:
    """Every name that braces stand for: {a,b} each of a list, {000..012} each number, with its zeros."""
    braces = _BRACES.search(name)
    if braces is None or Path(name).exists():
        yield name
        return
    for choice in _choices(braces[1]):
        yield from spelled_out(name[: braces.start()] + choice + name[braces.end() :])


def _choices(inner: str) -> list[str]:
    span = _RANGE.fullmatch(inner)
    if span is None:
        return [choice.strip() for choice in inner.split(",")]
    first, last = int(span[1]), int(span[2])
    width = len(span[1]) if span[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def _matching(name: str, within: str) -> list[Path]:
    path = Path(name)
    if within and path.is_dir():
        found = sorted(path.rglob(within))
        if not found:
            raise DataError(f"{path}: this folder holds no {within}; name the folder of your data.")
        return found
    if path.exists():
        return [path]
    found = _hits(name)
    if not found:
        raise DataError(f"{name}: there is no such file; check the path.")
    return found


def unmatched(names: str | Sequence[str]) -> list[str]:
    """Those names (braces spelled out) that nothing answers to."""
    spelled = [one for name in ([names] if isinstance(names, str) else names) for one in spelled_out(name)]
    return [one for one in spelled if not Path(one).exists() and not _hits(one)]


def _hits(pattern: str) -> list[Path]:
    return [Path(hit) for hit in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - it may be absolute
