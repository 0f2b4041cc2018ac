"""How large samples will be, from file headers alone: tokens, images and labels before a pixel is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmblocks.conversation import Item
from mmblocks.data.mixing.fingerprints import SYNTHETIC, fingerprint_item
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture
from mmblocks.data.mixing.overlong import OVERLONG_CURE, count_item_tokens, format_overlong
from mmblocks.data.planning.lengths_cache import LengthsCache, LengthsRow, RecordLengths
from mmblocks.data.record_errors import split_reason
from mmblocks.data.sample.encode import Targets, TooLong
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError

CHUNK = 64
"""Samples that a worker process measures at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleSizes:
    """What samples hold, four int64 arrays (n,): tokens, views, labels (trained tokens), and pairs: the sum of squared
    lengths of their sequences, which attention's work grows with. A pair of conversations counts as both.
    """

    tokens: np.ndarray
    views: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[int, int, int, int]]) -> SampleSizes:
        """From (tokens, views, labels, pairs) of each sample."""
        table = np.array(list(rows), dtype=np.int64).reshape(-1, 4)
        return cls(*(np.ascontiguousarray(column) for column in table.T))

    def __len__(self) -> int:
        return len(self.tokens)

    def select_rows(self, order: np.ndarray) -> SampleSizes:
        """Sizes of the same samples in another order, of some of them, or of some of them several times."""
        return SampleSizes(self.tokens[order], self.views[order], self.labels[order], self.pairs[order])

    def to_table(self) -> np.ndarray:
        """(n, 4) int64."""
        return np.stack([getattr(self, field.name) for field in fields(self)], axis=1)


class BrokenDraw(NamedTuple):
    """A record that cannot be used: the first draw of it, where it stands, and why."""

    number: int
    origin: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """Sizes of draws, zeros where a record is broken; and the broken records.

    readable: numbers of the draws that are not of a broken record. cut: tokens that the end of an answer lost to the limit,
    int64, by conversation that was drawn. known: what was measured of each record, broken ones apart.
    """

    sizes: SampleSizes
    broken: list[BrokenDraw]
    readable: np.ndarray
    cut: np.ndarray
    known: Mapping[Draw, RecordLengths]


def measure_draws(
    mixture: Mixture,
    draws: Draws,
    processor: Processor,
    targets: Targets = "answers",
    *,
    policy: Literal["raise", "skip"] = "raise",
    workers: int = 0,
    title: str = "",
    cache: LengthsCache | None = None,
    settled: Mapping[Draw, RecordLengths] | None = None,
) -> Measurement:
    """Measure every conversation that is drawn, once, in `workers` processes if there are any.

    policy: "raise" stops with a `DataError` at the first that cannot be used, "skip" lists it. Samples over the limit of
    tokens are counted to the end before that, or listed where the processor's `overlong` says "skip". title: what the progress
    bar says; none is shown without one. cache: lengths measured before, which hold for records that did not change, and where new ones
    are kept. settled: lengths that hold whatever their records say now.
    """
    pairs = np.stack([draws.source, draws.index], axis=1).reshape(-1, 2)
    rows, firsts, places = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    unique = [Draw(source, index) for source, index in rows.tolist()]
    places = places.reshape(-1)
    kept = {} if cache is None else cache.read()
    known = {draw: one for draw, one in kept.items() if mixture.is_synthetic(draw.source)} | dict(settled or {})
    missing = [draw for draw in unique if draw not in known]
    headers = _SizeReader(mixture, missing, processor, targets, None if cache is None else kept)
    faults: dict[Draw, MeasureFault] = {}
    loader = DataLoader(headers, batch_size=CHUNK, num_workers=workers, collate_fn=list)
    results = chain.from_iterable(loader)
    shown = tqdm(results, total=len(headers), desc=title, unit="sample", disable=not title, dynamic_ncols=True)
    for draw, result in zip(missing, shown, strict=True):
        if isinstance(result, RecordLengths):
            known[draw] = result
            continue
        if policy == "raise" and not result.tokens:
            raise DataError(result.reason)
        faults[draw] = result
    if cache is not None and kept != (fresh := kept | known):
        cache.write(fresh)
    if policy == "raise" and faults and processor.overlong != "skip":
        sentences = [next(iter(faults.values())).reason]
        for number in sorted({draw.source for draw in faults}):
            tokens = [fault.tokens for draw, fault in faults.items() if draw.source == number]
            measured = sum(draw.source == number for draw in unique)
            sentences.append(format_overlong(mixture.names[number], tokens, measured, len(mixture.sources[number])))
        raise TooLong(" ".join([*sentences, OVERLONG_CURE]))
    table = [known[draw].row if draw in known else _NO_ROW for draw in unique]
    sizes = SampleSizes.from_rows(row[:4] for row in table).select_rows(places)
    broken = [BrokenDraw(int(firsts[i]), *faults[draw][:2]) for i, draw in enumerate(unique) if draw in faults]
    whole = np.array([draw not in faults for draw in unique], dtype=bool)
    cut = np.array([row[4] for row in table], dtype=np.int64)
    return Measurement(sizes, sorted(broken), np.flatnonzero(whole[places]), cut, known)


_NO_ROW: LengthsRow = (0, 0, 0, 0, 0)


class MeasureFault(NamedTuple):
    """Why a record has no size: where it stands, and the reason; `tokens` of one that is too long."""

    origin: str
    reason: str
    tokens: int = 0


def measure_item(item: Item, processor: Processor, targets: Targets) -> LengthsRow:
    """What the samples of an item will hold together."""
    samples = processor.make_item_runs(item, targets)
    lengths = [len(sample) for sample in samples]
    return (
        sum(lengths),
        sum(len(routed.plan.unique_views) for sample in samples for routed in sample.plans),
        sum(sample.num_labelled for sample in samples),
        sum(length**2 for length in lengths),
        sum(sample.num_cut for sample in samples),
    )


class _SizeReader(Dataset[RecordLengths | MeasureFault]):
    """Sizes of conversations, read in a worker process if there are any.

    kept: what is known of records from before; None where fingerprints are not needed.
    """

    def __init__(
        self,
        mixture: Mixture,
        draws: list[Draw],
        processor: Processor,
        targets: Targets,
        kept: Mapping[Draw, RecordLengths] | None,
    ) -> None:
        self.mixture, self.draws, self.processor, self.kept = mixture, draws, processor, kept
        self.targets: Targets = targets

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> RecordLengths | MeasureFault:
        draw = self.draws[number]
        origin = self.mixture.describe_origin(draw)
        try:
            item = self.mixture[draw]
            origin = item.origin
            before, fingerprint = None, SYNTHETIC
            if self.kept is not None and not self.mixture.is_synthetic(draw.source):
                before = self.kept.get(draw)
                fingerprint = fingerprint_item(item, None if before is None else before.fingerprint)
            if before is not None and fingerprint.has_same_content(before.fingerprint):
                return RecordLengths(before.row, fingerprint)
            try:
                return RecordLengths(measure_item(item, self.processor, self.targets), fingerprint)
            except TooLong as fault:
                return MeasureFault(origin, str(fault), count_item_tokens(item, self.processor, self.targets))
        except DataError as fault:
            return MeasureFault(split_reason(fault, origin)[0], str(fault))
