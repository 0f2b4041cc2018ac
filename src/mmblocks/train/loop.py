"""A training run: its stages in order, each from a folder of weights to the next."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmblocks.errors import TrainingInterrupted, TrainingPreempted
from mmblocks.lock import lock_folder
from mmblocks.model.checkpoint import load, save
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.convert import export_to_transformers
from mmblocks.storage import explain_disk_errors, list_damage, read_checksums, replace_folder
from mmblocks.train.automatic import resolve_automatic
from mmblocks.train.checks.run import require_run
from mmblocks.train.distributed import World, join_processes
from mmblocks.train.encoder_pretraining import pretrain_encoder
from mmblocks.train.setting_changes import select_identity
from mmblocks.train.stage_model import make_initial_model
from mmblocks.train.stage_run import StageRun
from mmblocks.train.stages import Curriculum, TrainRun, read_checked_run
from mmblocks.train.starting_model import adopt_components
from mmblocks.train.state import ResumePoint, begin_stage, find_resume_point, open_run_folder, read_notes
from mmblocks.train.stop_signals import StopRequested, listen_for_signals

log = logging.getLogger(__name__)


def run(recipe: Mapping[str, Any]) -> Path:
    """Train a composed recipe, or resume it where it stopped. Returns the folder of the finished model.

    Written to `out`: run.json (the recipe), metrics.jsonl, state/ (to resume from), stages/ (the model after each
    stage) and model/ (the last). Under torchrun every process calls this, and the model is sharded over them. Raises
    `ConfigError` with every fault before any weight is read.
    """
    composition = require_run(recipe)
    if recipe.get("from_weights"):
        recipe = adopt_components(recipe)
        composition = require_run(recipe)
    curriculum = read_checked_run(recipe)
    if curriculum.run.threads:
        torch.set_num_threads(curriculum.run.threads)
    with (
        listen_for_signals() as stopping,
        join_processes(curriculum.run.device, curriculum.run.timeout_s, stopping) as world,
    ):
        return Training(resolve_automatic(curriculum, world.device), world, dict(recipe), composition).run()


@dataclass(frozen=True, slots=True)
class Training:
    """A run in this process: its stages, the processes that share it, its recipe and the dry build of its model."""

    curriculum: Curriculum
    world: World
    recipe: Mapping[str, Any]
    composition: DryBuild

    @property
    def settings(self) -> TrainRun:
        return self.curriculum.run

    @property
    def out(self) -> Path:
        return Path(self.settings.out)

    @property
    def stage_numbers(self) -> range:
        """Numbers of the stages to run."""
        names = [stage.name for stage in self.curriculum.stages]
        first = names.index(self.settings.first_stage) if self.settings.first_stage else 0
        return range(first, names.index(self.settings.last_stage) + 1 if self.settings.last_stage else len(names))

    def find_stage_folder(self, number: int) -> Path:
        """The folder of the model after a stage."""
        return self.out / "stages" / f"{number}-{self.curriculum.stages[number].name}"

    def find_start_folder(self, number: int) -> Path | None:
        """The folder of the model that a stage starts from; None where that is not a folder of this run."""
        if number > self.stage_numbers[0]:
            return self.find_stage_folder(number - 1)
        is_pretrained = self.curriculum.encoder_pretraining is not None and number == 0
        return self.out / "stages" / "encoder_pretraining" if is_pretrained else None

    def run(self) -> Path:
        """Run the stages that are not finished.

        Raises `TrainingInterrupted` on Ctrl-C, `TrainingPreempted` on SIGTERM, SIGUSR1 and SIGHUP, `BusyError` where
        another process trains in the folder, `StorageError` where the disk refuses.
        """
        with explain_disk_errors(self.out), ExitStack() as locks:
            self.world.run_on_rank0(lambda: locks.enter_context(lock_folder(self.out)))
            stage_runs: list[StageRun] = []
            try:
                with self.world.stopping.raise_at_once() if self.world.is_single_process else nullcontext():
                    self._run_stages(stage_runs)
                    return self.world.run_on_rank0(self._finish_run)
            except StopRequested:
                signal = self.world.stopping.name or "a signal to another process"
                raise TrainingPreempted(self._describe_interruption(stage_runs, f" by {signal}")) from None
            except KeyboardInterrupt:
                raise TrainingInterrupted(self._describe_interruption(stage_runs)) from None

    def _run_stages(self, stage_runs: list[StageRun]) -> None:
        """Run the stages; each is added to `stage_runs` as it begins."""
        point, steps_before = self.world.run_on_rank0(self._open_run)
        for number in self.stage_numbers:
            if number < point.stage:
                continue
            folders = {"before": self.find_start_folder(number), "after": self.find_stage_folder(number)}
            stage_run = StageRun(
                self.curriculum, number, self.world, self.composition, **folders, steps_before=steps_before
            )
            stage_runs.append(stage_run)
            with self.world.stopping.defer_raise():
                stage_run.run(point.step if number == point.stage else 0)
                steps_before += stage_run.num_steps
                begin_stage(self.out, number + 1, self.world, notes={"before": steps_before})
                if self.world.is_asked_to_stop():
                    raise StopRequested

    def _describe_interruption(self, stage_runs: Sequence[StageRun], cause: str = "") -> str:
        """Where the run was stopped and where it resumes, on rank 0; empty on other processes."""
        if not self.world.is_rank0:
            return ""
        if not stage_runs:
            return f"stopped{cause} before the first step; run the same command again to begin."
        stage_run, saved = stage_runs[-1], find_resume_point(self.out)
        name, advice = stage_run.stage.name, "run the same command again to resume from there."
        if saved.stage > stage_run.number:
            return f"stopped{cause} after stage {name!r}. {self.out} holds its model; {advice}"
        step = saved.step if saved.stage == stage_run.number else 0
        return (
            f"stopped{cause} in stage {name!r} after step {stage_run.steps_done} of {stage_run.num_steps}. {self.out} holds "
            f"the state after step {step}; {advice}"
        )

    def _open_run(self) -> tuple[ResumePoint, int]:
        """Where to begin, and how many steps the stages before it took; pretrains the encoder where that comes first."""
        settings, pretraining = self.settings, self.curriculum.encoder_pretraining
        point = open_run_folder(self.out, select_identity(self.recipe), resume=settings.resume)
        if point != ResumePoint():
            log.info("resuming %s at stage %d, step %d", self.out, point.stage, point.step)
        start = self.find_start_folder(self.stage_numbers[0])
        if start is not None and pretraining is not None and not start.is_dir():
            model, metrics = make_initial_model(settings).to(self.world.device), self.out / "metrics.jsonl"
            pretrain_encoder(model, pretraining, budget=settings.budget, seed=settings.seed, metrics=metrics)
            save(model, start)
        return point, read_notes(self.out, point).get("before", 0)

    def _finish_run(self) -> Path:
        """Copy the last stage's model to model/, and export it."""
        last, model = self.find_stage_folder(self.stage_numbers[-1]), self.out / "model"
        if read_checksums(model) != read_checksums(last) or list_damage(model):
            with replace_folder(model) as fresh:
                shutil.copytree(last, fresh, dirs_exist_ok=True)
        if self.settings.export is not None:
            export_to_transformers(load(model), self.out / self.settings.export)
        return model
