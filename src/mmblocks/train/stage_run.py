"""One stage: a model, its data and an objective, trained step by step from a folder of weights to the next."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.data.mixing.overlong import append_cuts
from mmblocks.data.mixing.skipped_records import append_skipped
from mmblocks.data.planning.cost import SampleCost
from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.onevision import OneVision
from mmblocks.storage import write_json
from mmblocks.train.batches import StageBatches, StepInput, iterate_batches
from mmblocks.train.data_changes import DataComparison, RecordsFile
from mmblocks.train.distributed import World
from mmblocks.train.ema import EMA
from mmblocks.train.features import FeatureCache, prepare_feature_cache
from mmblocks.train.finite_guard import FiniteGuard, all_finite, explain_resume
from mmblocks.train.objectives import objectives, require_items
from mmblocks.train.optim import compute_lr_factor, make_optimizer
from mmblocks.train.plan import StagePlanner
from mmblocks.train.reports.evaluation import format_measurements, is_better, is_due
from mmblocks.train.reports.parameter_table import format_training_table, make_training_table, write_table
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.reports.progress import Progress
from mmblocks.train.reports.tracking import open_trackers
from mmblocks.train.stage_data import BROKEN, CUT, make_shared_data, require_good_labels, warn_left_out
from mmblocks.train.stage_measurements import StageMeasurements
from mmblocks.train.stage_model import make_stage_model, make_stage_processor, make_whole_model, save_stage
from mmblocks.train.stages import Curriculum
from mmblocks.train.state import ResumePoint, read_notes, restore_state, save_state
from mmblocks.train.step import Stepper, StepResult
from mmblocks.train.stop_signals import StopRequested

log = logging.getLogger(__name__)

RECORDS_TO_LINT = 50
"""Records of each source whose labels are checked before a stage begins."""


class StageRun:
    """Stage `number` of a run: its model, data, objective and optimizer are made here, and trained by `run`.

    composition: the dry build of the run's model. before: the folder of the model that the stage starts from, None for the
    run's start. after: the folder for its trained model. steps_before: the steps of the stages before it.
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
        self.data_notes: dict[str, str] = {}

        self.objective = objectives.build(self.stage.objective)
        self.model = self._load_model(before)
        self.processor = make_stage_processor(self.model, self.stage, self.settings)
        cost = SampleCost.from_model(composition, self.stage.train) if self.stage.pack_tokens else None
        fingerprints = RecordsFile(self.out, number).read_latest() if world.is_rank0 else None
        planner = StagePlanner(self.stage, number, self.settings, self.processor, cost, fingerprints)
        self.data = make_shared_data(planner, self.out, world)
        require_items(self.objective, self.data.mixture)
        if self.settings.cache_features is not None:
            self.processor = replace(self.processor, features=self._prepare_features(self.settings.cache_features))
        features = None if self.processor.features is None else self.processor.features.read((), ())
        self.empty_batch = Batch.make_empty(self.processor.view_px, features)
        policy, targets = self.settings.broken, self.stage.targets
        self.batches = StageBatches(self.data, self.processor, targets, world, cost=cost, policy=policy)

        self.objective.prepare_model(self.model, self._load_frozen)
        self.optimizer = make_optimizer(self.model, self.stage)
        self.ema = None if self.settings.ema is None else EMA(self.model, self.settings.ema)
        self.guard = FiniteGuard(
            f"stage {self.stage.name!r}",
            lambda step: explain_resume(self.out, number, self.stage, step),
            at_once=world.device.type == "cpu",
        )
        needs_pairs = self.objective.needs_pairs
        self.measurements = StageMeasurements(
            curriculum,
            self.stage,
            world,
            before,
            self.model,
            self.processor,
            self.batches,
            self.empty_batch,
            needs_pairs,
        )

    @property
    def num_steps(self) -> int:
        return len(self.data.plan)

    def run(self, first: int) -> None:
        """Train from step `first` on, which resumes the stage where it is not 0, and write the model."""
        self.steps_done = first
        recent_losses = self._resume_stage(first) if first else self._start_stage()
        with (
            StepProfiler(self.model, composition=self.composition) as profiler,
            self._open_progress(first, recent_losses) as progress,
        ):
            self.take_steps(first, profiler, progress)
            log.info("stage %s: where the time went\n%s", self.stage.name, profiler.format_totals())
        with self._use_averages():
            self._write_model(self.after, self.num_steps)
        warn_left_out(self.data.mixture, self.out)

    def take_steps(self, first: int, profiler: StepProfiler, progress: Progress) -> None:
        """Train from step `first` to the last; `progress` and states to resume from are written.

        Raises `StopRequested` after a state is saved, where a process has received a signal.
        """
        take_step = Stepper(
            self.model,
            self.objective,
            self.optimizer,
            self.stage,
            self.world,
            profiler,
            self.empty_batch.to(self.world.device),
            reduces_each_batch=self.settings.accumulate == "sharded",
            guard=self.guard,
        )
        self.model.train()
        with profiler.time_phase("data"):
            step_inputs = iterate_batches(self.batches, first, self.settings.num_workers)
        for step in range(first, self.num_steps):
            step_input = self._wait_for_input(step_inputs, profiler)
            if step_input is None:
                if step > first:
                    self._save_state(step, progress)
                raise StopRequested
            append_skipped(self.out / BROKEN, step_input.broken)
            append_cuts(self.out / CUT, step_input.cut)
            # Dropout has a seed per step and process, so that a resumed run drops the same.
            set_seeds(derive_seed(self.settings.seed, self.number, step) + self.world.rank, self.world.device)
            lr_factor = compute_lr_factor(step, self.num_steps, self.stage.warmup, self.stage.schedule)
            self._finish_step(step, take_step(step_input, lr_factor, step), profiler, progress)
            self.steps_done = step + 1

    def _wait_for_input(self, step_inputs: Iterator[StepInput], profiler: StepProfiler) -> StepInput | None:
        """The next step's data; None on every process once one has received a signal, also while it waited."""
        step_input = None
        with profiler.time_phase("data"), suppress(StopRequested), self.world.stopping.raise_at_once():
            step_input = next(step_inputs)
        return None if self.world.is_asked_to_stop() else step_input

    def _finish_step(self, step: int, result: StepResult | None, profiler: StepProfiler, progress: Progress) -> None:
        """What follows an optimizer step: moving average, report, measurements, a state to resume from."""
        done = step + 1
        if result is None:
            log.warning("stage %s, step %d: every record was left out, nothing was trained", self.stage.name, step)
        else:
            if self.ema is not None:
                self.ema.update_average(self.model)
            self._report_step(step, result, profiler, progress)
        if done == self.settings.visual_ablation_at:
            self.guard.require_finite()
            with profiler.time_phase("evaluating"):
                progress.write_row(done, **self.measurements.measure_visual_ablation(done))
        if is_due(self.curriculum.evaluate, done, self.num_steps):
            self.guard.require_finite()
            with profiler.time_phase("evaluating"):
                progress.write_row(done, **self._evaluate_and_keep_best(done))
        if done % self.settings.save_every == 0 and done < self.num_steps:
            with profiler.time_phase("saving"):
                self._save_state(done, progress)

    # Models ---------------------------------------------------------------------------------------------------------

    def _load_model(self, folder: Path | None) -> OneVision:
        return make_stage_model(self.settings, self.stage, folder, self.world, self.objective.model_methods)

    def _load_frozen(self, folder: Path | None = None) -> OneVision:
        """One more model for the objective: that of `folder`, by default the one that the stage starts from."""
        return self._load_model(self.before if folder is None else folder).eval().requires_grad_(False)

    def _prepare_features(self, root: str) -> FeatureCache:
        """The frozen encoder's features of all images of the stage, made by rank 0."""

        def fill_on_rank0() -> FeatureCache:
            model = self.model
            if not self.world.is_single_process:
                model = make_whole_model(self.settings, self.stage, self.before).to(self.world.device)
            inputs = (root, model, self.stage, self.data.mixture, self.data.draws, self.processor)
            with self.world.stopping.raise_at_once():
                return prepare_feature_cache(*inputs, workers=self.settings.num_workers, broken=self.settings.broken)

        return self.world.run_on_rank0(fill_on_rank0)

    def _use_averages(self) -> AbstractContextManager[None]:
        """Give the model its averaged weights, where there are some."""
        return nullcontext() if self.ema is None else self.ema.use_averages(self.model)

    def _write_model(self, folder: Path, done: int) -> None:
        """Write the whole model after `done` steps, on rank 0."""
        self.guard.require_finite_weights(done, self._list_trained_tensors(), self.world)
        save_stage(self.model, self.settings, self.stage, self.before, folder, self.world)
        self.world.wait_for_all()

    # Start, save and resume -----------------------------------------------------------------------------------------

    def _start_stage(self) -> list[float]:
        """Check the data and describe the stage; returns the recent losses, none yet."""
        rows = make_training_table(self.model, self.stage)
        log.info("stage %s, %d steps\n%s", self.stage.name, self.num_steps, format_training_table(rows))

        def check_data() -> dict[str, str]:
            require_good_labels(self.data, self.processor, self.stage, self.settings, RECORDS_TO_LINT)
            write_table(self.out, self.stage.name, rows)
            return self._check_same_data({})

        self.data_notes = self.world.run_on_rank0(check_data)
        return []

    def _resume_stage(self, first: int) -> list[float]:
        """Restore the state before step `first` and check that the data are the same; returns the recent losses."""
        point, extra = ResumePoint(self.number, first), self._make_extra_state()
        restore_state(self.out, point, self.model, self.optimizer, self.world, extra=extra)
        notes = read_notes(self.out, point)
        if self.ema is not None:
            self.ema.load_state_dict(extra)
        if not all_finite(self._list_trained_tensors(), self.world):
            raise CheckpointError(
                f"{self.out / 'state' / point.folder_name} holds numbers that are infinite or NaN; remove it to resume from an "
                "older state, or begin anew with resume=false."
            )
        rows = make_training_table(self.model, self.stage)

        def check_data() -> dict[str, str]:
            data_notes = self._check_same_data(notes)
            write_table(self.out, self.stage.name, rows)  # learning rates may have changed
            return data_notes

        self.data_notes = self.world.run_on_rank0(check_data)
        return notes["pending"]

    def _check_same_data(self, notes: Mapping[str, Any]) -> dict[str, str]:
        """Notes on the data, saved with every state. notes: those of the state to resume from. Called on rank 0 only.

        Raises `DataError` where the data have changed, unless that is allowed.
        """
        accepts_changes = self.settings.resume_changed_data
        comparison = DataComparison(self.out, self.number, self.stage.name, accepts_changes=accepts_changes)
        held_out = self.curriculum.evaluate, self.settings.seed, notes
        return comparison.check_stage_data(self.data, notes) | comparison.check_held_out(*held_out)

    def _save_state(self, step: int, progress: Progress) -> None:
        self.guard.require_finite_weights(step, self._list_trained_tensors(), self.world)
        point, extra = ResumePoint(self.number, step), self._make_extra_state()
        notes = {"before": self.steps_before, "pending": progress.recent_losses, **self.data_notes}
        options = {"extra": extra, "notes": notes, "keep": self.settings.keep}
        save_state(self.out, point, self.model, self.optimizer, self.world, **options)

    def _make_extra_state(self) -> dict[str, Tensor]:
        return {} if self.ema is None else self.ema.state_dict()

    def _list_trained_tensors(self) -> list[Tensor]:
        """Trained weights, their moments and averages."""
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = [value for moments in self.optimizer.state.values() for value in moments.values()]
        return [*weights, *moments, *self._make_extra_state().values()]

    # Reports --------------------------------------------------------------------------------------------------------

    def _open_progress(self, first: int, recent_losses: list[float]) -> Progress:
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
            pending=recent_losses,
        )

    def _report_step(self, step: int, result: StepResult, profiler: StepProfiler, progress: Progress) -> None:
        others: dict[str, float] = {}
        if progress.is_due(step):
            self.guard.require_finite()
            others = {name: float(value) for name, value in result.metrics.items()} | profiler.read_metrics()
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        progress.report_step(
            step, result.loss, result.tokens, views=result.views, lr=lr, gradient_norm=result.norm, **others
        )

    def _evaluate_and_keep_best(self, done: int) -> dict[str, float]:
        """Measure the model; keep its weights where they are the best of the stage so far."""
        file = self.out / "best" / f"{self.number}.json"

        def is_best() -> bool:
            cure = "delete it; the next measurement is the best then."
            return is_better(row, read_object(file, cure) if file.is_file() else None)

        with self._use_averages():
            row = self.measurements.evaluate_held_out(done)
            if self.settings.keep_best and self.world.run_on_rank0(is_best):
                self._write_model(self.out / "best" / f"{self.number}-{self.stage.name}", done)
                if self.world.is_rank0:
                    write_json(file, {"step": done, **row})
        log.info("stage %s, step %d: %s", self.stage.name, done, format_measurements(row))
        return row


def derive_seed(run: int, stage: int, step: int) -> int:
    """One seed for a step of a run."""
    return (run * 1_000_003 + stage * 10_007 + step) % 2**31


def set_seeds(seed: int, device: torch.device) -> None:
    """Seed torch on the CPU and on a device; `torch.manual_seed` asks for devices of every kind, which takes 0.2 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
