"""The loop: stages in order, each from a folder of weights to the next, each step a pure function of what it is given."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmblocks.errors import TrainingInterrupted, TrainingPreempted
from mmblocks.lock import locked
from mmblocks.model.checkpoint import load, save
from mmblocks.model.checks.composition import Examination
from mmblocks.model.convert import export_to_transformers
from mmblocks.storage import damage, disk_faults, replaced_whole, sums_of
from mmblocks.train.checks.run import require_run
from mmblocks.train.distributed import World, joined
from mmblocks.train.encoder_pretraining import learn_to_see
from mmblocks.train.stage_model import starting_model
from mmblocks.train.stage_run import StageRun
from mmblocks.train.stages import FREE, Curriculum, TrainRun, read_checked_run
from mmblocks.train.state import Place, begin_stage, claim, notes_of, places
from mmblocks.train.stopping import StopAsked, listening

log = logging.getLogger(__name__)


def run(recipe: Mapping[str, Any]) -> Path:
    """Train a composed recipe, or go on where it stopped. Returns the folder of the finished model.

    Written to `out`: run.json (the recipe), metrics.jsonl, state/ (to resume from), stages/ (the model after each
    stage) and model/ (the last). Under torchrun every process calls this, and the model is sharded over them. Raises
    `ConfigError` with every fault before any weight is read.
    """
    composition = require_run(recipe)
    curriculum = read_checked_run(recipe)
    if curriculum.run.threads:
        torch.set_num_threads(curriculum.run.threads)
    with listening() as stopping, joined(curriculum.run.device, curriculum.run.timeout_s, stopping) as world:
        return Training(curriculum, world, dict(recipe), composition).run()


@dataclass(frozen=True, slots=True)
class Training:
    """A run in this process: its stages, the processes that share it, its recipe and the dry build of its model."""

    curriculum: Curriculum
    world: World
    recipe: Mapping[str, Any]
    composition: Examination

    @property
    def settings(self) -> TrainRun:
        return self.curriculum.run

    @property
    def out(self) -> Path:
        return Path(self.settings.out)

    @property
    def stages(self) -> range:
        """Numbers of the stages to run."""
        names = [stage.name for stage in self.curriculum.stages]
        first = names.index(self.settings.start_at) if self.settings.start_at else 0
        return range(first, names.index(self.settings.stop_after) + 1 if self.settings.stop_after else len(names))

    def folder(self, number: int) -> Path:
        """The model after a stage."""
        return self.out / "stages" / f"{number}-{self.curriculum.stages[number].name}"

    def before(self, number: int) -> Path | None:
        """The model that a stage starts from; None where that is not a folder of this run."""
        if number > self.stages[0]:
            return self.folder(number - 1)
        return self.out / "stages" / "sight" if self.curriculum.sight and number == 0 else None

    def run(self) -> Path:
        """Run the stages that are not done.

        Raises `TrainingInterrupted` on Ctrl-C, `TrainingPreempted` on SIGTERM, SIGUSR1 and SIGHUP, `BusyError` where
        another process trains in the folder, `StorageError` where the disk refuses.
        """
        with disk_faults(self.out), ExitStack() as held:
            self.world.from_first(lambda: held.enter_context(locked(self.out)))
            begun: list[StageRun] = []
            try:
                with self.world.stopping.at_once() if self.world.is_alone else nullcontext():
                    self._run_stages(begun)
                    return self.world.from_first(self._finish)
            except StopAsked:
                raise TrainingPreempted(
                    self._interruption(begun, f" by {self.world.stopping.name or 'a signal to another process'}")
                ) from None
            except KeyboardInterrupt:
                raise TrainingInterrupted(self._interruption(begun)) from None

    def _run_stages(self, begun: list[StageRun]) -> None:
        """Run them, each noted in `begun`."""
        place, before = self.world.from_first(self._claim)
        for number in self.stages:
            if number < place.stage:
                continue
            ends = {"before": self.before(number), "after": self.folder(number)}
            stage = StageRun(self.curriculum, number, self.world, self.composition, **ends, steps_before=before)
            begun.append(stage)
            with self.world.stopping.later():
                stage.run(place.step if number == place.stage else 0)
                before += stage.steps
                begin_stage(self.out, number + 1, self.world, notes={"before": before})
                if self.world.is_asked_to_stop():
                    raise StopAsked

    def _interruption(self, begun: Sequence[StageRun], by: str = "") -> str:
        """Where the run was stopped, and from where the next call resumes; said by the first process alone."""
        if not self.world.is_first:
            return ""
        if not begun:
            return f"stopped{by} before the first step; run the same command again to begin."
        stage = begun[-1]
        saved = max(places(self.out), default=Place())
        again = "run the same command again to resume from there."
        if saved.stage > stage.number:
            return f"stopped{by} after stage {stage.stage.name!r}. {self.out} holds its model; {again}"
        step = saved.step if saved.stage == stage.number else 0
        return (
            f"stopped{by} in stage {stage.stage.name!r} after step {stage.steps_done} of {stage.steps}. {self.out} holds "
            f"the state after step {step}; {again}"
        )

    def _claim(self) -> tuple[Place, int]:
        """Where to begin, and how many steps the stages before it took."""
        place = claim(self.out, _identity(self.recipe), resume=self.settings.resume)
        if place != Place():
            log.info("going on in %s at stage %d, step %d", self.out, place.stage, place.step)
        start = self.before(self.stages[0])
        if start is not None and not start.is_dir():
            self._learn_to_see(start)
        return place, notes_of(self.out, place).get("before", 0)

    def _learn_to_see(self, folder: Path) -> None:
        settings, sight = self.settings, self.curriculum.sight
        assert sight is not None
        model = starting_model(settings).to(self.world.device)
        learn_to_see(model, sight, budget=settings.budget, seed=settings.seed, metrics=self.out / "metrics.jsonl")
        save(model, folder)

    def _finish(self) -> Path:
        last, model = self.folder(self.stages[-1]), self.out / "model"
        if sums_of(model) != sums_of(last) or damage(model):
            with replaced_whole(model) as fresh:
                shutil.copytree(last, fresh, dirs_exist_ok=True)
        if self.settings.export is not None:
            export_to_transformers(load(self.out / "model"), self.out / self.settings.export)
        return model


def _identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to be the same run."""
    return {k: v for k, v in recipe.items() if k not in FREE}
