"""Sources side by side, and which of their conversations are read in which order: pure functions of a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mmblocks.conversation import Item
from mmblocks.data.mixing.entries import open_entry
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sources import Source, describe_origin, is_synthetic
from mmblocks.errors import ConfigError


class Draw(NamedTuple):
    """One conversation of a mixture: which source, and which of its conversations."""

    source: int
    record: int


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Conversations in the order they are read: two int64 arrays (n,)."""

    source: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, n: int) -> Draw:
        return Draw(int(self.source[n]), int(self.index[n]))

    def select_rows(self, order: np.ndarray) -> Draws:
        """The same draws in another order, or some of them."""
        return Draws(self.source[order], self.index[order])


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weighted sources. `names` are what reports call them."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]

    @classmethod
    def from_entries(cls, specs: Sequence[Mapping[str, Any]]) -> Mixture:
        """Open the sources of a stage: each a source's settings, and how it is used (see `entries.SourceUse`).

        An entry that names several files is several sources here, each with its own line in reports. Raises `ConfigError`
        for an empty one, `DataError` for one that cannot be read.
        """
        opened: list[tuple[Source, float, str]] = []
        for i, spec in enumerate(specs):
            try:
                with name_errors(f"data.{i}"):
                    opened += [(one.source, one.weight, f"{i} {one.name}") for one in open_entry(spec)]
            except ConfigError as error:
                if error.faults:
                    raise ConfigError.from_faults([fault.move_below(f"data.{i}") for fault in error.faults]) from error
                raise ConfigError(f"data.{i}: {error}") from error
        return cls(*zip(*opened, strict=True)) if opened else cls((), (), ())

    def __len__(self) -> int:
        """Conversations of all sources."""
        return sum(map(len, self.sources))

    def __getitem__(self, draw: Draw) -> Item:
        """One conversation or pair. Raises `DataError` that begins with the record's file and number, whatever is wrong."""
        with name_errors(self.describe_origin(draw)):
            return self.sources[draw.source][draw.record]

    def is_synthetic(self, source: int) -> bool:
        """Whether the records of a source are made as they are read, so that its settings alone decide them."""
        return is_synthetic(self.sources[source])

    def describe_origin(self, draw: Draw) -> str:
        """Where a record stands ("file:record 3"), without reading it."""
        return (
            describe_origin(self.sources[draw.source], draw.record)
            or f"{self.names[draw.source]}: record {draw.record}"
        )

    def draw_by_weight(self, size: int, seed: Sequence[int]) -> Draws:
        """`size` conversations by weight, each source in a new order every time it has been read through."""
        shares = np.array(self.weights, dtype=np.float64)
        chosen = np.random.default_rng(tuple(seed)).choice(len(self.sources), size=size, p=shares / shares.sum())
        index = np.empty(size, dtype=np.int64)
        for number, source in enumerate(self.sources):
            here = chosen == number
            index[here] = _repeat_permutations(len(source), int(here.sum()), (*seed, number))
        return Draws(chosen.astype(np.int64), index)

    def draw_epochs(self, times: float, seed: Sequence[int]) -> Draws:
        """Every conversation of every source once per epoch, in a new order each; a fraction of the last one."""
        everything = self.draw_all()
        size = round(times * len(self))
        return everything.select_rows(_repeat_permutations(len(self), size, (*seed, len(self.sources))))

    def draw_all(self) -> Draws:
        """Every conversation once, source by source."""
        lengths = [len(source) for source in self.sources]
        return Draws(np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths]))


def list_distinct_draws(draws: Draws) -> list[Draw]:
    """Each conversation that is drawn, once, in the order of sources and records."""
    rows = np.unique(np.stack([draws.source, draws.index], axis=1).reshape(-1, 2), axis=0)
    return [Draw(source, record) for source, record in rows.tolist()]


def _repeat_permutations(length: int, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """`size` numbers below `length`: whole permutations one after another, each its own."""
    laps = [_permute_records(length, (*seed, lap)) for lap in range(-(-size // length))]
    return np.concatenate([*laps, np.empty(0, dtype=np.int64)])[:size].astype(np.int64)


@lru_cache(maxsize=16)
def _permute_records(size: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)
