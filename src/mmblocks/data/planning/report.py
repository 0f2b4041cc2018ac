"""What a mixture's samples are like, and how much of the work of training on them would be padding or waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.measure import SampleSizes
from mmblocks.data.planning.packing import pack_best_fit
from mmblocks.data.planning.steps import PACKS_TO_BALANCE, StepPlan, plan_by_tokens

PADDED_BATCH = 4
"""Samples of one padded batch, where padding is compared."""
MEGA_BATCHES = 50
"""Padded batches that are sorted by length together, as transformers' length-grouped sampler does."""
VIEW_ROOM = 1.15
"""Cap on the views of a pack, as a multiple of their mean, where views are compared."""


@dataclass(frozen=True, slots=True)
class SampleDistribution:
    """Percentiles and mean of a number over samples."""

    p5: float
    p50: float
    p95: float
    mean: float
    max: float

    @classmethod
    def from_numbers(cls, numbers: np.ndarray) -> SampleDistribution:
        p5, p50, p95 = np.percentile(numbers, (5, 50, 95)).tolist()
        return cls(p5, p50, p95, float(numbers.mean()), float(numbers.max()))


@dataclass(frozen=True, slots=True)
class BatchingReport:
    """A mixture measured for `ranks` processes.

    labels_share: trained tokens in all tokens. waste: tokens computed for each real one, by method of batching, where every
    row must have one shape. pairs: attention pairs a pack would take if its sequences were not kept apart, for each
    pair that counts. efficiency: mean of the ranks' times divided by the slowest's, over all steps; None where the
    samples do not fill one step. packs: of `pack_tokens` tokens.
    """

    samples: int
    tokens: SampleDistribution
    views: SampleDistribution
    labels: SampleDistribution
    labels_share: float
    pack_tokens: int
    pack_views: int | None
    packs: int
    waste: dict[str, float]
    pairs: dict[str, float]
    ranks: int
    efficiency: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Values that json takes."""
        return asdict(self)


def report_batching(
    sizes: SampleSizes,
    cost: SampleCost,
    ranks: int,
    *,
    pack_tokens: int | None = None,
    pack_views: int | None = None,
    plan: StepPlan | None = None,
    seed: int = 0,
) -> BatchingReport:
    """Compare methods of batching samples in the order of `sizes`.

    pack_tokens: the smallest power of two that holds the longest sample and four of middle length, where it is not
    given. plan: the steps that a stage would take, compared beside the others.
    """
    tokens = pack_tokens or choose_pack_tokens(sizes)
    each = cost.estimate_seconds(sizes)
    by_tokens = pack_best_fit(sizes.tokens, sizes.views, max_tokens=tokens)
    capped = pack_best_fit(
        sizes.tokens, sizes.views, max_tokens=tokens, max_views=pack_views or _choose_view_cap(sizes, by_tokens)
    )
    return BatchingReport(
        samples=len(sizes),
        tokens=SampleDistribution.from_numbers(sizes.tokens),
        views=SampleDistribution.from_numbers(sizes.views),
        labels=SampleDistribution.from_numbers(sizes.labels),
        labels_share=float(sizes.labels.sum() / max(1, sizes.tokens.sum())),
        pack_tokens=tokens,
        pack_views=pack_views,
        packs=len(by_tokens if pack_views is None else capped),
        waste=dict(_compute_waste(sizes, by_tokens, capped, tokens, seed)),
        pairs={
            "sequences kept apart": 1.0,
            "packs seen as one sequence": sum(float(sizes.tokens[pack].sum()) ** 2 for pack in by_tokens)
            / float(sizes.pairs.sum()),
        },
        ranks=ranks,
        efficiency=dict(
            _compute_efficiencies(sizes, each, cost, ranks, by_tokens, capped, tokens, pack_views, plan, seed)
        ),
    )


def choose_pack_tokens(sizes: SampleSizes) -> int:
    """The smallest power of two that holds the longest sample and four of mean length."""
    needed = max(int(sizes.tokens.max()), 4 * int(sizes.tokens.mean()))
    return 1 << (needed - 1).bit_length()


def _choose_view_cap(sizes: SampleSizes, packs: Sequence[Sequence[int]]) -> int:
    """A little more than a mean pack's views, and no less than a sample's."""
    return max(int(VIEW_ROOM * sizes.views.sum() / len(packs)), int(sizes.views.max()))


def _compute_waste(
    sizes: SampleSizes, packs: Sequence[Sequence[int]], capped: Sequence[Sequence[int]], pack_tokens: int, seed: int
) -> Iterator[tuple[str, float]]:
    real = float(sizes.tokens.sum())
    random = np.random.default_rng(seed).permutation(len(sizes))
    yield f"padded, random, {PADDED_BATCH} samples", _count_padded_tokens(sizes.tokens[random]) / real
    yield (
        f"padded, grouped by length, {PADDED_BATCH} samples",
        _count_padded_tokens(sizes.tokens[_order_by_length(sizes, PADDED_BATCH, seed)]) / real,
    )
    yield "one sample", 1.0
    yield f"packed, {pack_tokens} tokens", len(packs) * pack_tokens / real
    yield f"packed, {pack_tokens} tokens, views capped", len(capped) * pack_tokens / real


def _count_padded_tokens(tokens: np.ndarray) -> float:
    """Tokens computed when batches in this order are padded to their longest."""
    starts = np.arange(0, len(tokens), PADDED_BATCH)
    sizes = np.diff([*starts.tolist(), len(tokens)])
    return float((np.maximum.reduceat(tokens, starts) * sizes).sum())


def _order_by_length(sizes: SampleSizes, batch: int, seed: int) -> np.ndarray:
    """A random order, sorted by length in stretches of `MEGA_BATCHES` batches."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    stretch = MEGA_BATCHES * batch
    parts = [order[i : i + stretch] for i in range(0, len(order), stretch)]
    return np.concatenate([part[np.argsort(-sizes.tokens[part], kind="stable")] for part in parts])


def _compute_efficiencies(
    sizes: SampleSizes,
    each: np.ndarray,
    cost: SampleCost,
    ranks: int,
    packs: list[list[int]],
    capped: list[list[int]],
    pack_tokens: int,
    pack_views: int | None,
    plan: StepPlan | None,
    seed: int,
) -> Iterator[tuple[str, float | None]]:
    random = np.random.default_rng(seed).permutation(len(sizes))
    yield "one sample each, random", _compute_rank_efficiency(each[random], ranks)
    yield (
        "one sample each, grouped by length",
        _compute_rank_efficiency(each[_order_by_length(sizes, ranks, seed)], ranks),
    )
    yield "a pack each", _compute_rank_efficiency(_sum_packs(each, packs), ranks)
    yield "a pack each, views capped", _compute_rank_efficiency(_sum_packs(each, capped), ranks)
    cap = pack_views or _choose_view_cap(sizes, packs)
    alike = plan_by_tokens(sizes, ranks * pack_tokens, pack_tokens, cap, seed=(seed,), cost=cost)
    yield "a pack each, views capped, steps of like cost", compute_plan_efficiency(alike, each, ranks, cost, ranks)
    several = plan_by_tokens(sizes, PACKS_TO_BALANCE * ranks * pack_tokens, pack_tokens, cap, window=1)
    yield (
        f"{PACKS_TO_BALANCE} packs each, longest first",
        compute_plan_efficiency(several, each, ranks, cost, PACKS_TO_BALANCE * ranks),
    )
    if plan is not None:
        yield "as the stage says", compute_plan_efficiency(plan, each, ranks, cost)


def _sum_packs(each: np.ndarray, packs: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([each[pack].sum() for pack in packs])


def _compute_rank_efficiency(costs: np.ndarray, ranks: int) -> float | None:
    """One piece of work per rank and step, in this order; an incomplete last step does not count."""
    steps = costs[: len(costs) // ranks * ranks].reshape(-1, ranks)
    return float(steps.mean(axis=1).sum() / steps.max(axis=1).sum()) if len(steps) else None


def compute_plan_efficiency(
    plan: StepPlan, each: np.ndarray, ranks: int, cost: SampleCost | None, least: int = 1
) -> float | None:
    """The share of time in which ranks work, over all steps of a plan that have at least `least` packs."""
    mean = slowest = 0.0
    for step in np.flatnonzero(np.diff(plan.step_ends) >= least).tolist():
        loads = [sum(float(each[pack].sum()) for pack in mine) for mine in plan.share_packs(step, ranks, cost)]
        mean, slowest = mean + float(np.mean(loads)), slowest + max(loads)
    return mean / slowest if slowest > 0 else None
