"""How large samples will be, from file headers alone: tokens, pictures and labels before a pixel is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmblocks.conversation import Item
from mmblocks.data.fingerprints import MADE, fingerprint
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture
from mmblocks.data.overlong import CHOICES, said, tokens_of
from mmblocks.data.planning.lengths_cache import Known, LengthsCache, Row
from mmblocks.data.record_faults import origin_and_reason
from mmblocks.data.sample.encode import Targets, TooLong
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError

CHUNK = 64
"""Samples that a worker process measures at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """What samples hold, four int64 arrays (n,): tokens, views, labels (trained tokens), and pairs: the sum of squared
    lengths of their sequences, which attention's work grows with. A pair of conversations counts as both.
    """

    tokens: np.ndarray
    views: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, int, int]]) -> Sizes:
        """From (tokens, views, labels, pairs) of each sample."""
        table = np.array(list(rows), dtype=np.int64).reshape(-1, 4)
        return cls(*(np.ascontiguousarray(column) for column in table.T))

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, order: np.ndarray) -> Sizes:
        """Sizes of the same samples in another order, of some of them, or of some of them several times."""
        return Sizes(self.tokens[order], self.views[order], self.labels[order], self.pairs[order])

    def table(self) -> np.ndarray:
        """(n, 4) int64."""
        return np.stack([getattr(self, field.name) for field in fields(self)], axis=1)


class Broken(NamedTuple):
    """A record that cannot be used: the first draw of it, where it stands, and why."""

    number: int
    origin: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Sizes of draws, zeros where a record is broken; and the broken records.

    readable: numbers of the draws that are not of a broken record. cut: tokens that the end of an answer lost to the limit,
    int64, by conversation that was drawn. known: what was measured of each record, broken ones apart.
    """

    sizes: Sizes
    broken: list[Broken]
    readable: np.ndarray
    cut: np.ndarray
    known: Mapping[Draw, Known]


def measure(
    mixture: Mixture,
    draws: Draws,
    processor: Processor,
    targets: Targets = "answers",
    *,
    policy: Literal["raise", "skip"] = "raise",
    workers: int = 0,
    title: str = "",
    cache: LengthsCache | None = None,
    settled: Mapping[Draw, Known] | None = None,
) -> Measured:
    """Measure every conversation that is drawn, once, in `workers` processes if there are any.

    policy: "raise" stops with a `DataError` at the first that cannot be used, "skip" lists it. Samples over the limit of
    tokens are counted to the end before that, or listed where the processor's `overlong` says "skip". title: what the progress
    bar says; none is shown without one. cache: lengths known from before, which are taken where their record says and
    shows what it did, and where new ones are kept. settled: lengths that are taken without looking at their records.
    """
    unique, firsts, places = _unique(draws)
    kept = {} if cache is None else cache.read()
    known = {draw: one for draw, one in kept.items() if mixture.is_made(draw.source)} | dict(settled or {})
    missing = [draw for draw in unique if draw not in known]
    headers = _Headers(mixture, missing, processor, targets, None if cache is None else kept)
    faults: dict[Draw, Fault] = {}
    for draw, found in zip(missing, _read(headers, workers, title), strict=True):
        if isinstance(found, Known):
            known[draw] = found
            continue
        if policy == "raise" and not found.tokens:
            raise DataError(found.reason)
        faults[draw] = found
    if cache is not None and kept != (fresh := kept | known):
        cache.write(fresh)
    if policy == "raise" and faults and processor.overlong != "skip":
        raise TooLong(_too_long(mixture, unique, faults))
    table = [known[draw].row if draw in known else _NO_ROW for draw in unique]
    sizes = Sizes.of(row[:4] for row in table).take(places)
    broken = [Broken(int(firsts[i]), *faults[draw][:2]) for i, draw in enumerate(unique) if draw in faults]
    whole = np.array([draw not in faults for draw in unique], dtype=bool)
    cut = np.array([row[4] for row in table], dtype=np.int64)
    return Measured(sizes, sorted(broken), np.flatnonzero(whole[places]), cut, known)


def _too_long(mixture: Mixture, measured: Sequence[Draw], faults: Mapping[Draw, Fault]) -> str:
    """What is wrong with the first, how many others there are by source, and which limit takes them all."""
    told = [next(iter(faults.values())).reason]
    for number in sorted({draw.source for draw in faults}):
        tokens = [fault.tokens for draw, fault in faults.items() if draw.source == number]
        looked_at = sum(draw.source == number for draw in measured)
        told.append(said(mixture.names[number], tokens, looked_at, len(mixture.sources[number])))
    return " ".join([*told, CHOICES])


_NO_ROW: Row = (0, 0, 0, 0, 0)


class Fault(NamedTuple):
    """Why a record has no size: where it stands, and the reason; `tokens` of one that is too long."""

    origin: str
    reason: str
    tokens: int = 0


def size_of(item: Item, processor: Processor, targets: Targets) -> Row:
    """What the samples of an item will hold together."""
    encoded = processor.encoded(item, targets)
    return (
        sum(len(e) for e in encoded),
        sum(len(routed.plan.pictures) for e in encoded for routed in e.plans),
        sum(e.num_labelled for e in encoded),
        sum(len(e) ** 2 for e in encoded),
        sum(e.num_cut for e in encoded),
    )


def _unique(draws: Draws) -> tuple[list[Draw], np.ndarray, np.ndarray]:
    """Each conversation that is drawn, its first draw, and for each draw the place of its conversation."""
    pairs = np.stack([draws.source, draws.index], axis=1).reshape(-1, 2)
    unique, firsts, places = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    return [Draw(source, index) for source, index in unique.tolist()], firsts, places.reshape(-1)


def _read(headers: _Headers, workers: int, title: str) -> Iterator[Known | Fault]:
    records: Any = headers
    loader = DataLoader(records, batch_size=CHUNK, num_workers=workers, collate_fn=list)
    rows = chain.from_iterable(loader)
    return iter(tqdm(rows, total=len(headers), desc=title, unit="sample", disable=not title, dynamic_ncols=True))


class _Headers(Dataset[Known | Fault]):
    """Sizes of conversations, read where they are asked for: in a worker process if there are any.

    kept: what is known of records from before; None where nobody asks for their fingerprints.
    """

    def __init__(
        self,
        mixture: Mixture,
        draws: list[Draw],
        processor: Processor,
        targets: Targets,
        kept: Mapping[Draw, Known] | None,
    ) -> None:
        self.mixture, self.draws, self.processor, self.kept = mixture, draws, processor, kept
        self.targets: Targets = targets

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> Known | Fault:
        draw = self.draws[number]
        origin = self.mixture.origin(draw)
        try:
            item = self.mixture[draw]
            origin = item.origin
            try:
                return self._known(draw, item)
            except TooLong as fault:
                return Fault(origin, str(fault), tokens_of(item, self.processor, self.targets))
        except DataError as fault:
            return Fault(origin_and_reason(fault, origin)[0], str(fault))

    def _known(self, draw: Draw, item: Item) -> Known:
        if self.kept is None or self.mixture.is_made(draw.source):
            return Known(size_of(item, self.processor, self.targets), MADE)
        before = self.kept.get(draw)
        seen = fingerprint(item, None if before is None else before.fingerprint)
        if before is not None and seen.says_the_same_as(before.fingerprint):
            return Known(before.row, seen)
        return Known(size_of(item, self.processor, self.targets), seen)
