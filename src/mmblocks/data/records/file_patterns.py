"""File names with {a,b}, {000..012} and *: one path or many."""

import glob
import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from mmblocks.data.media.files import is_existing_path
from mmblocks.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
MOST_NAMES = 1_000_000
"""More files than any data set has: a pattern for more is a mistake."""


def find_files(names: str | Sequence[str], *, within: str = "") -> list[Path]:
    """The files that names match, in their order; braces as they are written, `*` and `?` sorted.

    within: what to look for where a name is a folder ("*.tar"), in its subfolders too. Raises `DataError` for a name
    that matches nothing.
    """
    names = [names] if isinstance(names, str) else names
    if too_many := [name for name in names if count_names(name) > MOST_NAMES]:
        raise DataError(f"{too_many[0]:.200}: its braces stand for {count_names(too_many[0]):,} names; write fewer.")
    found = [file for name in names for one in expand_braces(name) for file in _match_files(one, within)]
    if not found:
        raise DataError("no file is named; write a path.")
    return found


def expand_braces(name: str) -> Iterator[str]:
    """Every name that braces stand for: {a,b} each of a list, {000..012} each number, with its zeros."""
    braces = _BRACES.search(name)
    if braces is None or is_existing_path(name):
        yield name
        return
    if (span := _RANGE.fullmatch(braces[1])) is None:
        choices = (choice.strip() for choice in braces[1].split(","))
    else:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = (str(number).zfill(width) for number in range(int(span[1]), int(span[2]) + 1))
    for choice in choices:
        yield from expand_braces(name[: braces.start()] + choice + name[braces.end() :])


def count_names(name: str) -> int:
    """How many names braces stand for, counted without writing them; of braces within braces, at least."""
    if is_existing_path(name):
        return 1
    spans = [(inner, _RANGE.fullmatch(inner)) for inner in _BRACES.findall(name)]
    return prod(inner.count(",") + 1 if s is None else max(0, int(s[2]) - int(s[1]) + 1) for inner, s in spans)


def _match_files(name: str, within: str) -> list[Path]:
    path, there = Path(name), is_existing_path(name)
    if there and not path.is_dir() and not path.is_file():  # a pipe, which would be waited for, or a device
        raise DataError(f"{name}: not a regular file; write the path of a file.")
    if within and there and path.is_dir():
        found = sorted(path.rglob(within))
        if not found:
            raise DataError(f"{path}: this folder holds no {within}; name the folder of your data.")
        return found
    if there:
        return [path]
    found = _glob_paths(name)
    if not found:
        raise DataError(f"{name:.300}: there is no such file; check the path.")
    return found


def list_unmatched(names: str | Sequence[str]) -> list[str]:
    """Those names (braces expanded) that match nothing."""
    given = [names] if isinstance(names, str) else names
    too_many = [name for name in given if count_names(name) > MOST_NAMES]
    spelled = (one for name in given if name not in too_many for one in expand_braces(name))
    return [*too_many, *(one for one in spelled if not is_existing_path(one) and not _glob_paths(one))]


def _glob_paths(pattern: str) -> list[Path]:
    try:
        return [Path(hit) for hit in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - it may be absolute
    except (OSError, ValueError, re.error):  # no usable path: too long, with a null byte
        return []
