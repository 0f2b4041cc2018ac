"""Does it look? The loss with the true visuals beside the loss with others' and with blank ones.

A projector that passes nothing on, placeholders that nothing replaces, and pictures that belong to other conversations
all train without an error; the loss alone does not show them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmblocks.batch import IGNORE, Batch
from mmblocks.data.sample.processor import mean_colour
from mmblocks.errors import ConfigError
from mmblocks.model.modes import evaluating
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan
from mmblocks.train.distributed import World

log = logging.getLogger(__name__)

ROUNDING = 1e-5
"""Losses that differ by less, relative to the true one, are the same up to rounding."""
SURE = 3.0
"""Standard errors by which others' visuals must be worse than the true ones before the model counts as looking."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Mean loss per labelled token with the true visuals, with those of other samples, and with blank ones.

    samples: how many were compared: those whose visuals could all be exchanged. error: standard error of
    shuffled - true over them.
    """

    true: float
    shuffled: float
    blank: float
    samples: int
    error: float

    @property
    def is_dead(self) -> bool:
        """What is shown changes nothing at all."""
        worst = max(abs(self.shuffled - self.true), abs(self.blank - self.true))
        return self.samples > 0 and worst <= ROUNDING * max(self.true, ROUNDING)

    @property
    def is_blind(self) -> bool:
        """Others' visuals serve as well as the true ones, as far as these samples can tell."""
        return self.samples > 0 and self.shuffled - self.true <= SURE * self.error

    @property
    def verdict(self) -> str:
        """One sentence, with the losses."""
        losses = (
            f"(loss {self.true:.4g} true, {self.shuffled:.4g} shuffled, {self.blank:.4g} blank; {self.samples} samples)"
        )
        if self.samples == 0:
            return "no two samples have visuals that could be exchanged; nothing was compared."
        if self.is_dead:
            return f"the visuals change nothing: is the projector dead, or are placeholders not replaced? {losses}"
        if self.is_blind and self.blank < self.true:
            return (
                "shuffled visuals do as well as the true ones and blank ones do better: do the visuals belong to other "
                f"conversations? {losses}"
            )
        if self.is_blind:
            return (
                "shuffled visuals do as well as the true ones: the model does not look yet, or the visuals belong to other "
                f"conversations. {losses}"
            )
        return f"the model looks {losses}"

    def row(self) -> dict[str, float]:
        """The figures as metrics; none where nothing was compared."""
        if self.samples == 0:
            return {}
        return {
            "look/true": self.true,
            "look/shuffled": self.shuffled,
            "look/blank": self.blank,
            "look/error": self.error,
        }

    def act(self) -> None:
        """Raise `ConfigError` when the visuals change nothing, since no training helps; else log the verdict, as a warning
        when the model is blind, which it may also be because it has not learned enough yet.
        """
        if self.is_dead:
            raise ConfigError(f"look_at: {self.verdict}")
        log.log(logging.WARNING if self.is_blind else logging.INFO, "look_at: %s", self.verdict)


@torch.no_grad()
def look(
    model: OneVision,
    batches: Sequence[Batch | None],
    world: World | None = None,
    *,
    sequences: int = 1,
    nothing: Batch | None = None,
) -> Looks:
    """Compare the loss with true, shuffled and blank visuals on the same batches; thrice their forward passes.

    Visuals are exchanged among samples of all `batches` of this process, whole, with one of like plan (else of as many
    views), and never within a sample; a foreign clip also runs backwards. Samples without visuals, or with one that
    nothing could be exchanged for, do not count. Every process gives as many batches (None for one without samples) and
    gets the same answer. sequences: how many adjoining sequences make one sample, 2 for pairs of answers. nothing: the
    batch that stands for None, by default `Batch.empty` without features.
    """
    world = world or World(0, 1, model.device)
    with evaluating(model):
        nothing = nothing or Batch.empty(model.encoder.view_px)
        given = [_ready(nothing if batch is None else batch, model, world) for batch in batches]
        shown = [visual for number, batch in enumerate(given) for visual in _visuals(number, batch, sequences)]
        donors = _exchanged(shown)
        counted = _whole(shown, donors)
        kinds = (given, _shuffled(given, shown, donors), [_blank(batch, model) for batch in given])
        true, shuffled, blank = (_losses(model, changed, counted, sequences) for changed in kinds)
    rows = _rows(given, counted, sequences)
    return _judged(true, shuffled, blank, rows, world)


def _ready(batch: Batch, model: OneVision, world: World) -> Batch:
    every = batch.with_all_views()  # visuals are exchanged view by view
    return (every if world.is_alone else every.with_blank_view(model.encoder.view_px)).to(model.device)


# Who gets whose visuals ---------------------------------------------------------------------------------------------

Sample = tuple[int, int]
"""Number of the batch, and of the sample in it."""


@dataclass(frozen=True, slots=True)
class _Visual:
    """A visual of a batch: whose it is and where its views lie."""

    sample: Sample
    views: slice
    routed: RoutedPlan

    @property
    def num_views(self) -> int:
        return self.views.stop - self.views.start


def _visuals(number: int, batch: Batch, sequences: int) -> list[_Visual]:
    ends = batch.packing.cu_seqlens[1:].tolist()
    positions = batch.visual_positions.tolist()
    found, view, row = [], 0, 0
    for routed in batch.plans:
        views = slice(view, view + len(routed.plan.views))
        if routed.plan.num_tokens:
            sequence = sum(end <= positions[row] for end in ends)
            found.append(_Visual((number, sequence // sequences), views, routed))
        view, row = views.stop, row + routed.plan.num_tokens
    return found


def _exchanged(shown: Sequence[_Visual]) -> dict[int, int]:
    """For each visual that can have one, the number of a visual of another sample."""
    alike = _turned(range(len(shown)), shown, lambda v: (v.routed.scenario, v.num_views, v.routed.plan.num_tokens))
    left = [n for n in range(len(shown)) if n not in alike]
    return alike | _turned(left, shown, lambda v: v.num_views)


def _turned(numbers: Iterable[int], shown: Sequence[_Visual], key: Callable[[_Visual], Hashable]) -> dict[int, int]:
    """Visuals of one key handed on by as many places as one sample has at most, so that none stays in its sample."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for n in numbers:
        groups[key(shown[n])].append(n)
    donors = {}
    for group in groups.values():
        samples = [shown[n].sample for n in group]
        step = max(samples.count(sample) for sample in set(samples))
        if 2 * step <= len(group):
            donors |= {n: group[(place + step) % len(group)] for place, n in enumerate(group)}
    return donors


def _whole(shown: Sequence[_Visual], donors: Mapping[int, int]) -> set[Sample]:
    """Samples all of whose visuals are exchanged."""
    return {v.sample for v in shown} - {v.sample for n, v in enumerate(shown) if n not in donors}


def _shuffled(given: Sequence[Batch], shown: Sequence[_Visual], donors: Mapping[int, int]) -> list[Batch]:
    changed = [replace(batch, pixels=batch.pixels.clone(), features=_copy(batch.features)) for batch in given]
    for taker, donor in donors.items():
        to, whose = shown[taker], shown[donor]
        for name in ("pixels", "features"):
            ours, theirs = getattr(changed[to.sample[0]], name), getattr(given[whose.sample[0]], name)
            if ours is not None and len(ours):
                views = theirs[whose.views]
                ours[to.views] = views.flip(0) if to.routed.scenario == "video" else views
    return changed


def _copy(features: Tensor | None) -> Tensor | None:
    return None if features is None else features.clone()


def _blank(batch: Batch, model: OneVision) -> Batch:
    """Every view the encoder's mean colour; of features that came with the batch, their mean."""
    colour = torch.tensor(mean_colour(model.encoder.pixel_mean), dtype=torch.uint8, device=batch.pixels.device)
    pixels = colour.view(1, 3, 1, 1).expand_as(batch.pixels)
    features = batch.features
    if features is not None and len(features):
        features = features.mean((0, 1, 2)).expand_as(features)
    return replace(batch, pixels=pixels, features=features)


# Losses -------------------------------------------------------------------------------------------------------------


def _losses(model: OneVision, batches: Sequence[Batch], counted: set[Sample], sequences: int) -> Tensor:
    """(counted samples,) float64: the summed loss of each, in order."""
    sums = [torch.zeros(0, dtype=torch.float64)]
    for number, batch in enumerate(batches):
        rows = model.row_losses(batch).double().cpu()
        per_sample = rows.split(_labelled(batch, sequences))
        sums += [part.sum()[None] for n, part in enumerate(per_sample) if (number, n) in counted]
    return torch.cat(sums)


def _rows(batches: Sequence[Batch], counted: set[Sample], sequences: int) -> Tensor:
    """(counted samples,) float64: labelled rows of each."""
    sizes = [
        size
        for number, batch in enumerate(batches)
        for n, size in enumerate(_labelled(batch, sequences))
        if (number, n) in counted
    ]
    return torch.tensor(sizes, dtype=torch.float64)


def _labelled(batch: Batch, sequences: int) -> list[int]:
    """Labelled rows of each sample."""
    each = [int(part.sum()) for part in (batch.targets != IGNORE).split(batch.packing.lengths)]
    return [sum(each[n : n + sequences]) for n in range(0, len(each), sequences)]


def _judged(true: Tensor, shuffled: Tensor, blank: Tensor, rows: Tensor, world: World) -> Looks:
    """Means over all processes, and the standard error of the ratio sum(shuffled - true) / sum(rows)."""
    gain = shuffled - true
    parts = (true, shuffled, blank, rows, torch.ones_like(rows), gain * gain, gain * rows, rows * rows)
    t, s, b, r, samples, gg, gr, rr = world.sum(*(float(part.sum()) for part in parts))
    if samples == 0:
        return Looks(float("nan"), float("nan"), float("nan"), 0, float("nan"))
    mean = (s - t) / r
    spread = max(gg - 2 * mean * gr + mean * mean * rr, 0.0) * samples / max(samples - 1, 1)
    return Looks(t / r, s / r, b / r, int(samples), spread**0.5 / r)
