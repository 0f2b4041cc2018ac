"""One stage: a model, its data and an objective, step by step from a folder of weights to the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.data.mixing.broken import append_skipped
from mmblocks.data.overlong import append_cuts
from mmblocks.data.planning.cost import SampleCost
from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.onevision import OneVision
from mmblocks.storage import write_json
from mmblocks.train.batches import StageBatches, StepInput, iterate_batches
from mmblocks.train.distributed import World
from mmblocks.train.ema import EMA
from mmblocks.train.features import FeatureCache, prepare_feature_cache
from mmblocks.train.finite import FiniteGuard, all_finite, explain_resume
from mmblocks.train.objectives import objectives, require_items
from mmblocks.train.optim import compute_lr_factor, find_trained_parts, make_optimizer
from mmblocks.train.plan import StagePlanner
from mmblocks.train.reports.evaluation import evaluate_model, is_better, is_due
from mmblocks.train.reports.parameter_table import format_training_table, make_training_table, write_table
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.reports.progress import Progress
from mmblocks.train.reports.tracking import open_trackers
from mmblocks.train.reports.visual_ablation import measure_visual_ablation
from mmblocks.train.same_data import DataComparison, RecordsFile
from mmblocks.train.stage_data import BROKEN, CUT, make_shared_data, require_good_labels, warn_left_out
from mmblocks.train.stage_model import make_stage_model, make_stage_processor, make_whole_model, save_stage
from mmblocks.train.stages import Curriculum
from mmblocks.train.state import ResumePoint, read_notes, restore_state, save_state
from mmblocks.train.step import Stepper, StepResult, make_autocast
from mmblocks.train.stopping import StopRequested

log = logging.getLogger(__name__)

RECORDS_TO_LINT = 50
"""Records of each source whose labels are checked before a stage begins."""
ABLATION_SAMPLES = 32
"""Samples per process whose visuals are exchanged (see `probe`); with fewer, chance decides too often."""


class StageRun:
    """Stage `number` of a run: what it needs is made in the order in which it is needed, then steps are taken.

    composition: the dry build of the run's model. before: folder of the model that it starts from, None for the run's
    start. after: where its model goes. steps_before: those of the stages before it.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        number: int,
        world: World,
        composition: DryBuild,
        *,
        before: Path | None,
        after: Path,
        steps_before: int,
    ) -> None:
        self.curriculum, self.number, self.world, self.composition = curriculum, number, world, composition
        self.settings, self.stage = curriculum.run, curriculum.stages[number]
        self.out = Path(self.settings.out)
        self.before, self.after, self.steps_before = before, after, steps_before
        self.steps_done = 0
        self.noted: dict[str, str] = {}
        self.model = self._make_model()
        self.processor = make_stage_processor(self.model, self.stage, self.settings)
        self.cost = SampleCost.from_model(composition, self.stage.train) if self.stage.pack_tokens else None
        before_now = RecordsFile(self.out, number).read_latest() if world.is_rank0 else None
        planner = StagePlanner(self.stage, number, self.settings, self.processor, self.cost, before_now)
        self.data = make_shared_data(planner, self.out, world)
        if self.settings.cache_features is not None:
            self.processor = replace(self.processor, features=self._prepare_features(self.settings.cache_features))
        self.objective = objectives.build(self.stage.objective)
        require_items(self.objective, self.data.mixture)
        self.objective.prepare_model(self.model, self._make_model)
        self.optimizer = make_optimizer(self.model, self.stage)
        self.average = None if self.settings.ema is None else EMA(self.model, self.settings.ema)
        self.guard = FiniteGuard(
            f"stage {self.stage.name!r}", self._advise_on_failure, at_once=world.device.type == "cpu"
        )
        self.batches = StageBatches(
            self.data, self.processor, self.stage.targets, self.world, cost=self.cost, policy=self.settings.broken
        )

    @property
    def num_steps(self) -> int:
        return len(self.data.plan)

    def run(self, first: int) -> None:
        """Train from step `first`, and write the model."""
        self.steps_done = first
        pending = self._resume_stage(first) if first else self._start_stage()
        with (
            StepProfiler(self.model, composition=self.composition) as panel,
            self._open_progress(first, pending) as progress,
        ):
            stepper = Stepper(
                self.model,
                self.objective,
                self.optimizer,
                self.stage,
                self.world,
                panel,
                self._empty_batch,
                sends_all=self.settings.accumulate == "sharded",
                guard=self.guard,
            )
            self.model.train()
            with panel.time_phase("data"):
                waiting = iterate_batches(self.batches, first, self.settings.workers)
            for step in range(first, self.num_steps):
                made = self._wait_for_input(waiting, panel)
                if made is None:
                    self._save_and_stop(step, progress, has_news=step > first)
                append_skipped(self.out / BROKEN, made.broken)
                append_cuts(self.out / CUT, made.cut)
                self._finish_step(step, stepper(made, self._seeded(step), step), panel, progress)
                self.steps_done = step + 1
            log.info("stage %s: where the time went\n%s", self.stage.name, panel.format_totals())
        with self._use_averages():
            self._write_model(self.after, self.num_steps)
        warn_left_out(self.data.mixture, self.out)

    def _wait_for_input(self, waiting: Iterator[StepInput], panel: StepProfiler) -> StepInput | None:
        """The next step's data; None on every process where one was asked to stop, maybe while it waited."""
        made = None
        with panel.time_phase("data"), suppress(StopRequested), self.world.stopping.raise_at_once():
            made = next(waiting)
        return None if self.world.is_asked_to_stop() else made

    def _save_and_stop(self, step: int, progress: Progress, *, has_news: bool) -> NoReturn:
        """End before a step, with a state to go on from."""
        if has_news:
            self._save_state(step, progress)
        raise StopRequested

    def _finish_step(self, step: int, done: StepResult | None, panel: StepProfiler, progress: Progress) -> None:
        """What follows an optimizer step: the average, reports, measurements, a state to resume from."""
        if done is None:
            log.warning("stage %s, step %d: every record was left out, nothing was learned", self.stage.name, step)
        else:
            if self.average is not None:
                self.average.update_average(self.model)
            self._report_step(step, done, panel, progress)
        if step + 1 == self.settings.visual_ablation_at:
            with panel.time_phase("evaluating"):
                progress.write_row(step + 1, **self._run_visual_ablation(step + 1))
        if is_due(self.curriculum.evaluate, step + 1, self.num_steps):
            with panel.time_phase("evaluating"):
                progress.write_row(step + 1, **self._evaluate_and_keep_best(step + 1))
        if (step + 1) % self.settings.save_every == 0 and step + 1 < self.num_steps:
            with panel.time_phase("saving"):
                self._save_state(step + 1, progress)

    # Beginning and going on ---------------------------------------------------------------------------------------

    def _make_model(self) -> OneVision:
        """A model as the stage starts from."""
        return make_stage_model(self.settings, self.stage, self.before, self.world)

    def _start_stage(self) -> list[float]:
        rows = make_training_table(self.model, self.stage)
        log.info("stage %s, %d steps\n%s", self.stage.name, self.num_steps, format_training_table(rows))

        def check_data() -> None:
            require_good_labels(self.data, self.processor, self.stage, self.settings, RECORDS_TO_LINT)
            write_table(self.out, self.stage.name, rows)

        self.world.run_on_rank0(check_data)
        self.noted = self.world.run_on_rank0(lambda: self._check_same_data({}))
        return []

    def _resume_stage(self, first: int) -> list[float]:
        place, extra = ResumePoint(self.number, first), self._make_extra_state()
        restore_state(self.out, place, self.model, self.optimizer, self.world, extra=extra)
        notes = read_notes(self.out, place)
        if self.average is not None:
            self.average.load_state_dict(extra)
        if not all_finite(self._list_learned_tensors(), self.world):
            raise CheckpointError(
                f"{self.out / 'state' / place.folder_name} holds numbers that are infinite or NaN; remove it to go on from an "
                "older state, or begin anew with resume=false."
            )
        self.noted = self.world.run_on_rank0(lambda: self._check_same_data(notes))
        rows = make_training_table(self.model, self.stage)
        self.world.run_on_rank0(lambda: write_table(self.out, self.stage.name, rows))  # rates may have changed
        return notes["pending"]

    def _check_same_data(self, notes: Mapping[str, Any]) -> dict[str, str]:
        """What to note of the data beside a state. notes: those of the state to go on from; raises `DataError` where its
        data were others, unless that is allowed. The first process alone calls it.
        """
        same = DataComparison(self.out, self.number, self.stage.name, accepts_changes=self.settings.resume_changed_data)
        return same.check_stage_data(self.data, notes) | same.check_held_out(
            self.curriculum.evaluate, self.settings.seed, notes
        )

    def _make_extra_state(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def _prepare_features(self, root: str) -> FeatureCache:
        """The frozen encoder's features of everything that the stage shows, made by the first process."""

        def fill_on_rank0() -> FeatureCache:
            whole = self.model
            if not self.world.is_single_process:
                whole = make_whole_model(self.settings, self.stage, self.before).to(self.world.device)
            given = (root, whole, self.stage, self.data.mixture, self.data.draws, self.processor)
            with self.world.stopping.raise_at_once():
                return prepare_feature_cache(*given, workers=self.settings.workers, broken=self.settings.broken)

        return self.world.run_on_rank0(fill_on_rank0)

    @cached_property
    def _empty_batch(self) -> Batch:
        """What is run where other processes have a batch and this one has none."""
        features = None if self.processor.features is None else self.processor.features.read((), ())
        return Batch.make_empty(self.processor.view_px, features)

    def _make_autocast(self) -> AbstractContextManager[Any]:
        return make_autocast(self.stage, self.world)

    def _open_progress(self, first: int, pending: list[float]) -> Progress:
        names = self.settings.track if self.world.is_rank0 else ()
        return Progress(
            self.stage.name,
            first,
            self.num_steps,
            self.out / "metrics.jsonl",
            self.settings.log_every,
            writes=self.world.is_rank0,
            trackers=open_trackers(names, self.out, first=self.steps_before + first, settings=asdict(self.settings)),
            before=self.steps_before,
            pending=pending,
        )

    # In and after a step ------------------------------------------------------------------------------------------

    def _seeded(self, step: int) -> float:
        """Give dropout its seed of this step and process; returns the step's factor on the learning rates."""
        torch.manual_seed(derive_seed(self.settings.seed, self.number, step) + self.world.rank)
        return compute_lr_factor(step, self.num_steps, self.stage.warmup, self.stage.schedule)

    def _report_step(self, step: int, done: StepResult, panel: StepProfiler, progress: Progress) -> None:
        due = progress.is_due(step)
        if due:
            self.guard.require_finite()
        others = {name: float(value) for name, value in done.metrics.items()} if due else {}
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        progress.report_step(
            step,
            done.loss,
            done.tokens,
            views=done.views,
            lr=lr,
            gradient_norm=done.norm,
            **others,
            **(panel.read_metrics() if due else {}),
        )

    def _run_visual_ablation(self, first: int) -> dict[str, float]:
        """Whether the visuals of the next steps' samples matter to the loss."""
        self.guard.require_finite()
        batches: list[Batch | None] = []
        for step in range(first, self.num_steps):
            batches += self.batches[step].batches
            (sequences,) = self.world.sum_over_processes(
                sum(len(batch.packing.lengths) for batch in batches if batch is not None)
            )
            if sequences >= ABLATION_SAMPLES * self.world.size:
                break
        with self._make_autocast():
            looks = measure_visual_ablation(
                self.model, batches, self.world, sequences=2 if self.objective.pairs else 1, nothing=self._empty_batch
            )
        looks.raise_or_log()
        return looks.to_metrics()

    def _evaluate_and_keep_best(self, done: int) -> dict[str, float]:
        """Measure the model; keep its weights where they are the best of the stage so far."""
        self.guard.require_finite()
        best = self.out / "best" / f"{self.number}.json"
        with self._use_averages():
            with self._make_autocast():
                row = evaluate_model(self.model, self.curriculum, self.stage, self.processor, self.world)
            if self.settings.keep_best and self.world.run_on_rank0(lambda: is_better(row, _read(best))):
                self._write_model(self.out / "best" / f"{self.number}-{self.stage.name}", done)
                if self.world.is_rank0:
                    write_json(best, {"step": done, **row})
        return row

    def _use_averages(self) -> AbstractContextManager[None]:
        """The model with its averaged weights, where there are some."""
        return nullcontext() if self.average is None else self.average.use_averages(self.model)

    def _advise_on_failure(self, step: int) -> str:
        key = f"stages.{self.number}"
        settings = [
            *(f"{key}.train.{name}" for name in find_trained_parts(self.stage)),
            f"{key}.warmup",
            f"{key}.max_grad_norm",
        ]
        wider = [f"{key}.precision (to float32)"] if self.stage.precision != "float32" else []
        return explain_resume(self.out, self.number, step, [*settings, *wider])

    def _list_learned_tensors(self) -> list[Tensor]:
        """What learns, its moments and its averages."""
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = [value for moments in self.optimizer.state.values() for value in moments.values()]
        return [*weights, *moments, *self._make_extra_state().values()]

    def _save_state(self, step: int, progress: Progress) -> None:
        self.guard.require_finite_weights(step, self._list_learned_tensors(), self.world)
        notes = {"before": self.steps_before, "pending": progress.recent_losses, **self.noted}
        save_state(
            self.out,
            ResumePoint(self.number, step),
            self.model,
            self.optimizer,
            self.world,
            extra=self._make_extra_state(),
            notes=notes,
            keep=self.settings.keep,
        )

    def _write_model(self, folder: Path, done: int) -> None:
        """The whole model after `done` steps, written by the first process."""
        self.guard.require_finite_weights(done, self._list_learned_tensors(), self.world)
        save_stage(self.model, self.settings, self.stage, self.before, folder, self.world)
        self.world.wait_for_all()


def _read(path: Path) -> dict[str, Any] | None:
    return read_object(path, "delete it; the next measurement is the best then.") if path.is_file() else None


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(torch.tensor(numbers, dtype=torch.int64).mul(torch.tensor([1_000_003, 10_007, 1])).sum()) % 2**31
