"""Visual ablation: the loss with the true visuals beside the loss with those of other samples and with blank ones.

A projector whose output is constant, placeholders that nothing replaces, and images that belong to other conversations
all train without an error; the loss alone does not show them.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmblocks.batch import IGNORE, Batch
from mmblocks.data.sample.processor import compute_mean_colour
from mmblocks.errors import ConfigError
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan
from mmblocks.train.distributed import World

log = logging.getLogger(__name__)

RELATIVE_ROUNDING = 1e-5
"""Losses that differ by less, relative to the true one, are the same up to rounding."""
MIN_STANDARD_ERRORS = 3.0
"""Standard errors by which others' visuals must be worse than the true ones before the model counts as using them."""


@dataclass(frozen=True, slots=True)
class VisualAblation:
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
    def has_no_effect(self) -> bool:
        """What is shown changes nothing at all."""
        worst = max(abs(self.shuffled - self.true), abs(self.blank - self.true))
        return self.samples > 0 and worst <= RELATIVE_ROUNDING * max(self.true, RELATIVE_ROUNDING)

    @property
    def is_shuffle_invariant(self) -> bool:
        """Others' visuals serve as well as the true ones, as far as these samples can tell."""
        return self.samples > 0 and self.shuffled - self.true <= MIN_STANDARD_ERRORS * self.error

    @property
    def verdict(self) -> str:
        """One sentence, with the losses."""
        losses = (
            f"(loss {self.true:.4g} true, {self.shuffled:.4g} shuffled, {self.blank:.4g} blank; {self.samples} samples)"
        )
        if self.samples == 0:
            return "no two samples have visuals that could be exchanged; nothing was compared."
        if self.has_no_effect:
            return f"the visuals change nothing: is the projector dead, or are placeholders not replaced? {losses}"
        if self.is_shuffle_invariant and self.blank < self.true:
            return (
                "shuffled visuals do as well as the true ones and blank ones do better: do the visuals belong to other "
                f"conversations? {losses}"
            )
        if self.is_shuffle_invariant:
            return (
                "shuffled visuals do as well as the true ones: the model does not use its visuals yet, or the visuals belong to other "
                f"conversations. {losses}"
            )
        return f"the model uses its visuals {losses}"

    def to_metrics(self) -> dict[str, float]:
        """The figures as metrics; none where nothing was compared."""
        if self.samples == 0:
            return {}
        return {
            "visual_ablation/true": self.true,
            "visual_ablation/shuffled": self.shuffled,
            "visual_ablation/blank": self.blank,
            "visual_ablation/error": self.error,
        }

    def raise_or_log(self) -> None:
        """Raise `ConfigError` when the visuals change nothing, since no training helps; else log the verdict, as a warning
        when shuffled visuals do as well, which may also be because the model has not learned enough yet.
        """
        if self.has_no_effect:
            raise ConfigError(f"visual_ablation_at: {self.verdict}")
        log.log(logging.WARNING if self.is_shuffle_invariant else logging.INFO, "visual_ablation_at: %s", self.verdict)


@torch.no_grad()
def measure_visual_ablation(
    model: OneVision,
    batches: Sequence[Batch | None],
    world: World | None = None,
    *,
    sequences: int = 1,
    nothing: Batch | None = None,
) -> VisualAblation:
    """Compare the loss with true, shuffled and blank visuals on the same batches; thrice their forward passes.

    Visuals are exchanged among samples of all `batches` of this process, whole, with one of like plan (else of as many
    views), and never within a sample; a foreign video also runs backwards. Samples without visuals, or with one that
    nothing could be exchanged for, do not count. Every process gives as many batches (None for one without samples) and
    gets the same answer. sequences: how many adjoining sequences make one sample, 2 for pairs of answers. nothing: the
    batch that stands for None, by default `Batch.empty` without features.
    """
    world = world or World(0, 1, model.device)
    with use_evaluation_mode(model):
        nothing = nothing or Batch.make_empty(model.encoder.view_px)
        given = []
        for batch in batches:
            every = (nothing if batch is None else batch).with_all_views()  # visuals are exchanged view by view
            every = every if world.is_single_process else every.with_blank_view(model.encoder.view_px)
            given.append(every.to(model.device))
        shown = [visual for number, batch in enumerate(given) for visual in _list_visuals(number, batch, sequences)]
        donors = _rotate_within_groups(
            range(len(shown)), shown, lambda v: (v.routed.scenario, v.num_views, v.routed.plan.num_tokens)
        )
        others = [n for n in range(len(shown)) if n not in donors]
        donors |= _rotate_within_groups(others, shown, lambda v: v.num_views)
        counted = {v.sample for v in shown} - {v.sample for n, v in enumerate(shown) if n not in donors}
        kinds = (given, _shuffle_visuals(given, shown, donors), [_blank_visuals(batch, model) for batch in given])
        true, shuffled, blank = (_sum_losses(model, changed, counted, sequences) for changed in kinds)
    sizes = [
        size
        for number, batch in enumerate(given)
        for n, size in enumerate(_count_labelled(batch, sequences))
        if (number, n) in counted
    ]
    return _compare_losses(true, shuffled, blank, torch.tensor(sizes, dtype=torch.float64), world)


# Who gets whose visuals ---------------------------------------------------------------------------------------------

SampleNumber = tuple[int, int]
"""Number of the batch, and of the sample in it."""


@dataclass(frozen=True, slots=True)
class _BatchVisual:
    """A visual of a batch: whose it is and where its views lie."""

    sample: SampleNumber
    views: slice
    routed: RoutedPlan

    @property
    def num_views(self) -> int:
        return self.views.stop - self.views.start


def _list_visuals(number: int, batch: Batch, sequences: int) -> list[_BatchVisual]:
    ends = batch.packing.cu_seqlens[1:].tolist()
    positions = batch.visual_positions.tolist()
    found, view, row = [], 0, 0
    for routed in batch.plans:
        views = slice(view, view + len(routed.plan.views))
        if routed.plan.num_tokens:
            sequence = sum(end <= positions[row] for end in ends)
            found.append(_BatchVisual((number, sequence // sequences), views, routed))
        view, row = views.stop, row + routed.plan.num_tokens
    return found


def _rotate_within_groups(
    numbers: Iterable[int], shown: Sequence[_BatchVisual], key: Callable[[_BatchVisual], Hashable]
) -> dict[int, int]:
    """For each visual the number of another of the same key; shifted by as many as one sample has, so that none stays in its
    sample.
    """
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


def _shuffle_visuals(given: Sequence[Batch], shown: Sequence[_BatchVisual], donors: Mapping[int, int]) -> list[Batch]:
    changed = [
        replace(batch, pixels=batch.pixels.clone(), features=None if batch.features is None else batch.features.clone())
        for batch in given
    ]
    for taker, donor in donors.items():
        to, whose = shown[taker], shown[donor]
        for name in ("pixels", "features"):
            ours, theirs = getattr(changed[to.sample[0]], name), getattr(given[whose.sample[0]], name)
            if ours is not None and len(ours):
                views = theirs[whose.views]
                ours[to.views] = views.flip(0) if to.routed.scenario == "video" else views
    return changed


def _blank_visuals(batch: Batch, model: OneVision) -> Batch:
    """Every view the encoder's mean colour; of features that came with the batch, their mean."""
    colour = torch.tensor(compute_mean_colour(model.encoder.pixel_mean), dtype=torch.uint8, device=batch.pixels.device)
    pixels = colour.view(1, 3, 1, 1).expand_as(batch.pixels)
    features = batch.features
    if features is not None and len(features):
        features = features.mean((0, 1, 2)).expand_as(features)
    return replace(batch, pixels=pixels, features=features)


# Losses -------------------------------------------------------------------------------------------------------------


def _sum_losses(model: OneVision, batches: Sequence[Batch], counted: set[SampleNumber], sequences: int) -> Tensor:
    """(counted samples,) float64: the summed loss of each, in order."""
    sums = [torch.zeros(0, dtype=torch.float64)]
    for number, batch in enumerate(batches):
        rows = model.compute_row_losses(batch).double().cpu()
        per_sample = rows.split(_count_labelled(batch, sequences))
        sums += [part.sum()[None] for n, part in enumerate(per_sample) if (number, n) in counted]
    return torch.cat(sums)


def _count_labelled(batch: Batch, sequences: int) -> list[int]:
    """Labelled rows of each sample."""
    each = [int(part.sum()) for part in (batch.targets != IGNORE).split(batch.packing.lengths)]
    return [sum(each[n : n + sequences]) for n in range(0, len(each), sequences)]


def _compare_losses(true: Tensor, shuffled: Tensor, blank: Tensor, rows: Tensor, world: World) -> VisualAblation:
    """Means over all processes, and the standard error of the ratio sum(shuffled - true) / sum(rows)."""
    gain = shuffled - true
    parts = (true, shuffled, blank, rows, torch.ones_like(rows), gain * gain, gain * rows, rows * rows)
    t, s, b, r, samples, gg, gr, rr = world.sum_over_processes(*(float(part.sum()) for part in parts))
    if samples == 0:
        return VisualAblation(float("nan"), float("nan"), float("nan"), 0, float("nan"))
    mean = (s - t) / r
    spread = max(gg - 2 * mean * gr + mean * mean * rr, 0.0) * samples / max(samples - 1, 1)
    return VisualAblation(t / r, s / r, b / r, int(samples), spread**0.5 / r)
