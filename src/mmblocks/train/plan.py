"""Which conversations a stage reads, in which order, packed into which steps: the same for any number of processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmblocks.data.broken import Broken, Policy
from mmblocks.data.mixture import Draws, Mixture
from mmblocks.data.planning.cost import Cost
from mmblocks.data.planning.grouping import grouped_order
from mmblocks.data.planning.lengths_cache import LengthsCache
from mmblocks.data.planning.measure import Sizes, measure
from mmblocks.data.planning.steps import StepPlan, plan_by_count, plan_by_tokens
from mmblocks.data.processor import Processor
from mmblocks.errors import DataError
from mmblocks.train.stages import Stage, TrainRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageData:
    """The conversations of a stage in the order they are learned, how they are packed into steps, and what broke."""

    mixture: Mixture
    draws: Draws
    plan: StepPlan
    broken: tuple[Broken, ...] = ()

    @property
    def digest(self) -> str:
        """The same for the same draws in the same steps: a run that goes on compares it."""
        arrays = (self.draws.source, self.draws.index, self.plan.numbers, self.plan.pack_ends, self.plan.step_ends)
        return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


def ordered(mixture: Mixture, draws: Draws, stage: Stage, seed: Sequence[int], policy: Policy = "raise") -> Draws:
    """Draws in the order in which a stage learns them: samples of like length beside each other where it asks for it."""
    if stage.order == "mixed":
        return draws
    assert stage.batch_size is not None  # `check_stage` asks for it
    return draws.take(grouped_order(mixture, draws, stage.order, stage.batch_size, seed, policy))


def steps_over(sizes: Sizes, stage: Stage, seed: Sequence[int], cost: Cost | None) -> StepPlan:
    """A stage's steps over samples of these sizes."""
    if stage.step_tokens is not None and stage.pack_tokens is not None:
        return plan_by_tokens(sizes, stage.step_tokens, stage.pack_tokens, stage.pack_views, seed=seed, cost=cost)
    assert stage.batch_size is not None  # `run_faults` asks for either
    return plan_by_count(
        len(sizes), stage.batch_size, sizes=sizes, max_tokens=stage.pack_tokens, max_views=stage.pack_views
    )


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes the data of a curriculum's stage `number`."""

    stage: Stage
    number: int
    settings: TrainRun
    processor: Processor
    cost: Cost | None = None

    def data(self) -> StageData:
        """Draws and steps of the stage; lengths are measured, from headers alone, where packs have caps."""
        mixture = Mixture.of(self.stage.data)
        if self.stage.step_tokens is not None and self.stage.steps is not None:
            return self._until_enough(mixture, self.steps)
        draws = ordered(mixture, self._draws(mixture), self.stage, self.seed, self.settings.broken)
        if self.stage.pack_tokens is None and self.stage.pack_views is None:
            return StageData(mixture, draws, plan_by_count(len(draws), self.batch_size))
        return self._packed(mixture, draws)

    @property
    def seed(self) -> tuple[int, int]:
        return self.settings.seed, self.number

    @property
    def steps(self) -> int:
        """Steps of a stage that counts them."""
        return max(1, round((self.stage.steps or 1) * self.settings.budget))

    @property
    def batch_size(self) -> int:
        assert self.stage.batch_size is not None  # `run_faults` asks for either this or step_tokens
        return self.stage.batch_size

    def _draws(self, mixture: Mixture) -> Draws:
        if self.stage.epochs is not None:
            return mixture.epochs(self.stage.epochs * self.settings.budget, self.seed)
        return mixture.drawn(self.steps * self.batch_size, self.seed)

    def _packed(self, mixture: Mixture, draws: Draws) -> StageData:
        draws, sizes, broken = self._measured(mixture, draws)
        return StageData(mixture, draws, steps_over(sizes, self.stage, self.seed, self.cost), broken)

    def _until_enough(self, mixture: Mixture, steps: int) -> StageData:
        """Draw until the packs fill the steps: twice as many as long as they do not."""
        assert self.stage.step_tokens is not None
        size = max(64, steps)
        while True:
            draws, sizes, broken = self._measured(mixture, mixture.drawn(size, self.seed))
            if not len(sizes):
                raise DataError(f"stage {self.stage.name!r}: none of {size} records that were drawn can be read.")
            if int(sizes.tokens.sum()) >= steps * self.stage.step_tokens:
                plan = steps_over(sizes, self.stage, self.seed, self.cost)
                if len(plan) > steps:  # the last step may be incomplete
                    return StageData(mixture, draws, plan.first(steps), broken)
            size *= 2

    def _measured(self, mixture: Mixture, draws: Draws) -> tuple[Draws, Sizes, tuple[Broken, ...]]:
        settings, targets = self.settings, self.stage.targets
        cache = LengthsCache.of(
            Path(settings.out) / "lengths", list(self.stage.data), settings.model, self.processor, targets
        )
        found = measure(
            mixture,
            draws,
            self.processor,
            targets,
            policy=settings.broken,
            workers=settings.workers,
            title=f"measuring {self.stage.name}",
            cache=cache,
        )
        broken = tuple(
            Broken(fault.origin, fault.reason, mixture.names[draws[fault.number].source]) for fault in found.broken
        )
        return draws.take(found.readable), found.sizes.take(found.readable), broken
