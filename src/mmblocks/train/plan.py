"""Which conversations a stage reads, in which order, packed into which steps: the same for any number of processes."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmblocks.data.mixing.fingerprints import UNREADABLE, Fingerprints, fingerprint_draws
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture, list_distinct_draws
from mmblocks.data.mixing.skipped_records import Policy, SkippedRecord
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.grouping import make_grouped_order
from mmblocks.data.planning.lengths_cache import LengthsCache, RecordLengths
from mmblocks.data.planning.measure import Measurement, SampleSizes, measure_draws
from mmblocks.data.planning.steps import StepPlan, plan_by_count, plan_by_tokens
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.train.stages import Stage, TrainRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageData:
    """The conversations of a stage in training order, how they are packed into steps, and the records that were skipped.

    records: fingerprints of all that were drawn, by which a run that resumes recognises its data; None where another
    process has made them.
    """

    mixture: Mixture
    draws: Draws
    plan: StepPlan
    broken: tuple[SkippedRecord, ...] = ()
    records: Fingerprints | None = None

    @property
    def digest(self) -> str:
        """The same for the same draws in the same steps."""
        arrays = (self.draws.source, self.draws.index, self.plan.numbers, self.plan.pack_ends, self.plan.step_ends)
        return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


def order_draws(mixture: Mixture, draws: Draws, stage: Stage, seed: Sequence[int], policy: Policy = "raise") -> Draws:
    """Draws in a stage's training order: samples of similar length are grouped where `stage.order` says so."""
    if stage.order == "mixed":
        return draws
    assert stage.global_batch_size is not None  # checked before the run
    return draws.select_rows(make_grouped_order(mixture, draws, stage.order, stage.global_batch_size, seed, policy))


def plan_steps(sizes: SampleSizes, stage: Stage, seed: Sequence[int], cost: SampleCost | None) -> StepPlan:
    """A stage's steps over samples of these sizes."""
    if stage.step_tokens is not None and stage.pack_tokens is not None:
        return plan_by_tokens(sizes, stage.step_tokens, stage.pack_tokens, stage.pack_views, seed=seed, cost=cost)
    assert stage.global_batch_size is not None  # checked before the run: there is either this or step_tokens
    return plan_by_count(
        len(sizes), stage.global_batch_size, sizes=sizes, max_tokens=stage.pack_tokens, max_views=stage.pack_views
    )


@dataclass(frozen=True, slots=True)
class StagePlanner:
    """Plans the data of a curriculum's stage `number`. before: fingerprints of its records from an earlier start."""

    stage: Stage
    number: int
    settings: TrainRun
    processor: Processor
    cost: SampleCost | None = None
    before: Fingerprints | None = None

    def make_data(self) -> StageData:
        """Draws and steps of the stage. Every record is fingerprinted; where packs have caps, lengths are measured, from file
        headers alone.
        """
        return self._plan_data({}, has_fingerprints=True)

    def make_same_data(self) -> StageData:
        """The same where another process has just made it and written the lengths."""
        return self._plan_data(self._open_lengths_cache().read(), has_fingerprints=False)

    def _plan_data(self, settled: Mapping[Draw, RecordLengths], *, has_fingerprints: bool) -> StageData:
        mixture, stage = Mixture.from_entries(self.stage.data), self.stage
        if stage.step_tokens is not None and stage.steps is not None:
            return self._draw_until_enough(mixture, self.num_steps, settled)
        if stage.epochs is not None:
            draws = mixture.draw_epochs(stage.epochs * self.settings.budget, self.seed)
        else:
            draws = mixture.draw_by_weight(self.num_steps * self.global_batch_size, self.seed)
        draws = order_draws(mixture, draws, stage, self.seed, self.settings.broken)
        if stage.pack_tokens is not None or stage.pack_views is not None:
            measured = self._measure_lengths(mixture, draws, settled)
            plan = plan_steps(measured.sizes.select_rows(measured.readable), stage, self.seed, self.cost)
            return self._make_stage_data(mixture, draws, plan, measured)
        records = None
        if has_fingerprints:
            workers, title = self.settings.num_workers, f"fingerprinting {stage.name}"
            records = fingerprint_draws(mixture, draws, before=self.before, workers=workers, title=title)
        return StageData(mixture, draws, plan_by_count(len(draws), self.global_batch_size), records=records)

    @property
    def seed(self) -> tuple[int, int]:
        return self.settings.seed, self.number

    @property
    def num_steps(self) -> int:
        """Steps of a stage that counts them."""
        return max(1, round((self.stage.steps or 1) * self.settings.budget))

    @property
    def global_batch_size(self) -> int:
        assert self.stage.global_batch_size is not None  # checked before the run: there is either this or step_tokens
        return self.stage.global_batch_size

    def _draw_until_enough(self, mixture: Mixture, steps: int, settled: Mapping[Draw, RecordLengths]) -> StageData:
        """Draw, doubling the number of records, until the packs fill the steps."""
        assert self.stage.step_tokens is not None
        size = max(64, steps)
        while True:
            draws = mixture.draw_by_weight(size, self.seed)
            measured = self._measure_lengths(mixture, draws, settled)
            sizes, settled = measured.sizes.select_rows(measured.readable), measured.known
            if not len(sizes):
                raise DataError(f"stage {self.stage.name!r}: none of {size} records that were drawn can be read.")
            if int(sizes.tokens.sum()) >= steps * self.stage.step_tokens:
                plan = plan_steps(sizes, self.stage, self.seed, self.cost)
                if len(plan) > steps:  # the last step may be incomplete
                    return self._make_stage_data(mixture, draws, plan.keep_first_steps(steps), measured)
            size *= 2

    def _measure_lengths(self, mixture: Mixture, draws: Draws, settled: Mapping[Draw, RecordLengths]) -> Measurement:
        return measure_draws(
            mixture,
            draws,
            self.processor,
            self.stage.targets,
            policy=self.settings.broken,
            workers=self.settings.num_workers,
            title=f"measuring {self.stage.name}",
            cache=self._open_lengths_cache(),
            settled=settled,
        )

    def _open_lengths_cache(self) -> LengthsCache:
        folder, model = Path(self.settings.out) / "lengths", self.settings.model
        return LengthsCache.from_settings(folder, list(self.stage.data), model, self.processor, self.stage.targets)

    def _make_stage_data(self, mixture: Mixture, draws: Draws, plan: StepPlan, measured: Measurement) -> StageData:
        """The data of steps that were planned over the readable ones of these draws."""
        broken = tuple(
            SkippedRecord(fault.origin, fault.reason, mixture.names[draws[fault.number].source])
            for fault in measured.broken
        )
        known = measured.known
        fingerprints = {d: known[d].fingerprint if d in known else UNREADABLE for d in list_distinct_draws(draws)}
        return StageData(
            mixture, draws.select_rows(measured.readable), plan, broken, Fingerprints.from_draws(mixture, fingerprints)
        )
