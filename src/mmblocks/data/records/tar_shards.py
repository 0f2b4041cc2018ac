"""Tar files as samples that can be read in any order: where every member lies, found once."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from mmblocks.data.media.files import FileSlice
from mmblocks.errors import DataError
from mmblocks.storage import write_text

INDEX = ".index.json"
_FORMAT = 1


class TarMember(NamedTuple):
    """A file in a tar: what follows the first dot of its name, where its bytes begin, how many there are."""

    suffix: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of samples: adjoining members whose names agree up to the first dot, as in webdataset."""

    path: Path
    keys: tuple[str, ...]
    members: tuple[tuple[TarMember, ...], ...]

    def __len__(self) -> int:
        return len(self.keys)

    def list_members(self, number: int) -> dict[str, FileSlice]:
        """The members of a sample by suffix ("json", "jpg", "1.jpg"), not opened."""
        key = self.keys[number]
        return {m.suffix: FileSlice(self.path, m.offset, m.size, f"{key}.{m.suffix}") for m in self.members[number]}


def open_shard(path: Path, keep: bool) -> Shard:
    """The samples of a tar. `keep`: read the index beside it (NAME.index.json), or make it where there is none.

    Raises `DataError` for what is no tar, is compressed, is cut off, or holds the members of one sample apart.
    """
    stat = path.stat()
    stamp = {"format": _FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    index = path.with_name(path.name + INDEX)
    members: list[tuple[str, TarMember]] | None = None
    if keep:
        with suppress(OSError, ValueError, KeyError, TypeError):  # no index, or not one of ours
            raw: Any = json.loads(index.read_bytes())
            if raw["stamp"] == stamp:  # that of this very tar
                members = [(key, TarMember(*rest)) for key, *rest in raw["members"]]
    if members is None:
        members = list(_scan_members(path))
        if keep:
            entries = [[key, *member] for key, member in members]
            try:  # in one step, so that another process never reads half of it
                write_text(index, json.dumps({"stamp": stamp, "members": entries}))
            except OSError as cause:
                raise DataError(f"{index}: the index cannot be written ({cause}); write keep_index: false.") from cause
    samples = [(key, tuple(m for _, m in run)) for key, run in groupby(members, key=lambda one: one[0])]
    keys: set[str] = set()
    for key, of_key in samples:
        suffixes = [member.suffix for member in of_key]
        if key in keys or len(set(suffixes)) < len(suffixes):
            raise DataError(
                f"{path}: the sample {key!r} stands there twice, or its members apart; sort the files before packing them."
            )
        keys.add(key)
    return Shard(path, tuple(key for key, _ in samples), tuple(of_key for _, of_key in samples))


def _scan_members(path: Path) -> Iterator[tuple[str, TarMember]]:
    """(key, member) of every file; hidden ones and those without a dot are no part of a sample."""
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                end = info.offset_data + (info.size + 511) // 512 * 512
                folder, _, name = info.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                if info.issparse():
                    raise DataError(
                        f"{path}: {info.name}: a sparse member, whose bytes do not lie in one piece; pack it whole."
                    )
                if info.isreg() and key and dot:
                    yield (f"{folder}/{key}" if folder else key), TarMember(suffix.lower(), info.offset_data, info.size)
    except (tarfile.TarError, EOFError, OSError) as cause:
        raise DataError(
            f"{path}: not a tar, compressed, or cut off ({cause}); unpack .tar.gz to .tar, or fetch it again."
        ) from cause
    if path.stat().st_size < end + 512:  # every tar ends in blocks of zeros
        raise DataError(f"{path}: cut off at {path.stat().st_size} bytes, its end is missing; fetch it again.")
