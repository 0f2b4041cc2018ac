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
from mmblocks.data.mixing.broken import note_broken
from mmblocks.data.overlong import note_cut
from mmblocks.data.planning.cost import Cost
from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.model.checks.composition import Examination
from mmblocks.model.onevision import OneVision
from mmblocks.storage import write_json
from mmblocks.train.batches import Made, StageBatches, from_step
from mmblocks.train.distributed import World
from mmblocks.train.ema import EMA
from mmblocks.train.features import FeatureCache, kept_features
from mmblocks.train.finite import Guard, all_finite, how_to_go_on
from mmblocks.train.objectives import objectives, require_items
from mmblocks.train.optim import learners, optimizer_for, schedule
from mmblocks.train.plan import Planner
from mmblocks.train.reports.evaluation import evaluate_now, is_better, is_due
from mmblocks.train.reports.parameter_table import as_text, training_table, write_table
from mmblocks.train.reports.profiler import Panel
from mmblocks.train.reports.progress import Progress
from mmblocks.train.reports.tracking import trackers
from mmblocks.train.reports.visual_ablation import look
from mmblocks.train.same_data import RecordsFile, SameData
from mmblocks.train.stage_data import BROKEN, CUT, require_good_labels, shared_data, tell_left_out
from mmblocks.train.stage_model import save_stage, stage_model, stage_processor, whole_model
from mmblocks.train.stages import Curriculum
from mmblocks.train.state import Place, notes_of, restore_state, save_state
from mmblocks.train.step import Done, Stepper, autocast
from mmblocks.train.stopping import StopAsked

log = logging.getLogger(__name__)

LINTED = 50
"""Records of each source whose labels are checked before a stage begins."""
LOOK_OVER = 32
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
        composition: Examination,
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
        self.model = self._another()
        self.processor = stage_processor(self.model, self.stage, self.settings)
        self.cost = Cost.estimated(composition, self.stage.train) if self.stage.pack_tokens else None
        before_now = RecordsFile(self.out, number).latest() if world.is_first else None
        planner = Planner(self.stage, number, self.settings, self.processor, self.cost, before_now)
        self.data = shared_data(planner, self.out, world)
        if self.settings.cache_features is not None:
            self.processor = replace(self.processor, features=self._features(self.settings.cache_features))
        self.objective = objectives.build(self.stage.objective)
        require_items(self.objective, self.data.mixture)
        self.objective.start(self.model, self._another)
        self.optimizer = optimizer_for(self.model, self.stage)
        self.average = None if self.settings.ema is None else EMA(self.model, self.settings.ema)
        self.guard = Guard(f"stage {self.stage.name!r}", self._advice, at_once=world.device.type == "cpu")
        self.batches = StageBatches(
            self.data, self.processor, self.stage.targets, self.world, cost=self.cost, policy=self.settings.broken
        )

    @property
    def steps(self) -> int:
        return len(self.data.plan)

    def run(self, first: int) -> None:
        """Train from step `first`, and write the model."""
        self.steps_done = first
        pending = self._restore(first) if first else self._begin()
        with Panel(self.model, composition=self.composition) as panel, self._progress(first, pending) as progress:
            stepper = Stepper(
                self.model,
                self.objective,
                self.optimizer,
                self.stage,
                self.world,
                panel,
                self._nothing,
                sends_all=self.settings.accumulate == "sharded",
                guard=self.guard,
            )
            self.model.train()
            with panel.during("data"):
                waiting = from_step(self.batches, first, self.settings.workers)
            for step in range(first, self.steps):
                made = self._next(waiting, panel)
                if made is None:
                    self._stop(step, progress, has_news=step > first)
                note_broken(self.out / BROKEN, made.broken)
                note_cut(self.out / CUT, made.cut)
                self._step(step, stepper(made, self._seeded(step), step), panel, progress)
                self.steps_done = step + 1
            log.info("stage %s: where the time went\n%s", self.stage.name, panel.table())
        with self._averaged():
            self._write(self.after, self.steps)
        tell_left_out(self.data.mixture, self.out)

    def _next(self, waiting: Iterator[Made], panel: Panel) -> Made | None:
        """The next step's data; None on every process where one was asked to stop, maybe while it waited."""
        made = None
        with panel.during("data"), suppress(StopAsked), self.world.stopping.at_once():
            made = next(waiting)
        return None if self.world.is_asked_to_stop() else made

    def _stop(self, step: int, progress: Progress, *, has_news: bool) -> NoReturn:
        """End before a step, with a state to go on from."""
        if has_news:
            self._save(step, progress)
        raise StopAsked

    def _step(self, step: int, done: Done | None, panel: Panel, progress: Progress) -> None:
        """What follows an optimizer step: the average, reports, measurements, a state to resume from."""
        if done is None:
            log.warning("stage %s, step %d: every record was left out, nothing was learned", self.stage.name, step)
        else:
            if self.average is not None:
                self.average.update(self.model)
            self._report(step, done, panel, progress)
        if step + 1 == self.settings.look_at:
            with panel.during("evaluating"):
                progress.write(step + 1, **self._look(step + 1))
        if is_due(self.curriculum.evaluate, step + 1, self.steps):
            with panel.during("evaluating"):
                progress.write(step + 1, **self._evaluate(step + 1))
        if (step + 1) % self.settings.save_every == 0 and step + 1 < self.steps:
            with panel.during("saving"):
                self._save(step + 1, progress)

    # Beginning and going on ---------------------------------------------------------------------------------------

    def _another(self) -> OneVision:
        """A model as the stage starts from."""
        return stage_model(self.settings, self.stage, self.before, self.world)

    def _begin(self) -> list[float]:
        rows = training_table(self.model, self.stage)
        log.info("stage %s, %d steps\n%s", self.stage.name, self.steps, as_text(rows))

        def checks() -> None:
            require_good_labels(self.data, self.processor, self.stage, self.settings, LINTED)
            write_table(self.out, self.stage.name, rows)

        self.world.from_first(checks)
        self.noted = self.world.from_first(lambda: self._same_data({}))
        return []

    def _restore(self, first: int) -> list[float]:
        place, extra = Place(self.number, first), self._extra()
        restore_state(self.out, place, self.model, self.optimizer, self.world, extra=extra)
        notes = notes_of(self.out, place)
        if self.average is not None:
            self.average.load_state_dict(extra)
        if not all_finite(self._learned(), self.world):
            raise CheckpointError(
                f"{self.out / 'state' / place.folder} holds numbers that are infinite or NaN; remove it to go on from an "
                "older state, or begin anew with resume=false."
            )
        self.noted = self.world.from_first(lambda: self._same_data(notes))
        rows = training_table(self.model, self.stage)
        self.world.from_first(lambda: write_table(self.out, self.stage.name, rows))  # rates may have changed
        return notes["pending"]

    def _same_data(self, notes: Mapping[str, Any]) -> dict[str, str]:
        """What to note of the data beside a state. notes: those of the state to go on from; raises `DataError` where its
        data were others, unless that is allowed. The first process alone calls it.
        """
        same = SameData(self.out, self.number, self.stage.name, accepts_changes=self.settings.resume_changed_data)
        return same.of_stage(self.data, notes) | same.of_held_out(self.curriculum.evaluate, self.settings.seed, notes)

    def _extra(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def _features(self, root: str) -> FeatureCache:
        """The frozen encoder's features of everything that the stage shows, made by the first process."""

        def kept() -> FeatureCache:
            whole = self.model
            if not self.world.is_alone:
                whole = whole_model(self.settings, self.stage, self.before).to(self.world.device)
            given = (root, whole, self.stage, self.data.mixture, self.data.draws, self.processor)
            with self.world.stopping.at_once():
                return kept_features(*given, workers=self.settings.workers, broken=self.settings.broken)

        return self.world.from_first(kept)

    @cached_property
    def _nothing(self) -> Batch:
        """What is run where other processes have a batch and this one has none."""
        features = None if self.processor.features is None else self.processor.features.read((), ())
        return Batch.empty(self.processor.view_px, features)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.stage, self.world)

    def _progress(self, first: int, pending: list[float]) -> Progress:
        names = self.settings.track if self.world.is_first else ()
        return Progress(
            self.stage.name,
            first,
            self.steps,
            self.out / "metrics.jsonl",
            self.settings.log_every,
            writes=self.world.is_first,
            trackers=trackers(names, self.out, first=self.steps_before + first, settings=asdict(self.settings)),
            before=self.steps_before,
            pending=pending,
        )

    # In and after a step ------------------------------------------------------------------------------------------

    def _seeded(self, step: int) -> float:
        """Give dropout its seed of this step and process; returns the step's factor on the learning rates."""
        torch.manual_seed(hash_of(self.settings.seed, self.number, step) + self.world.rank)
        return schedule(step, self.steps, self.stage.warmup, self.stage.schedule)

    def _report(self, step: int, done: Done, panel: Panel, progress: Progress) -> None:
        due = progress.is_due(step)
        if due:
            self.guard.require()
        others = {name: float(value) for name, value in done.metrics.items()} if due else {}
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        progress.report(
            step,
            done.loss,
            done.tokens,
            views=done.views,
            rate=rate,
            gradient_norm=done.norm,
            **others,
            **(panel.row() if due else {}),
        )

    def _look(self, first: int) -> dict[str, float]:
        """Whether the visuals of the next steps' samples matter to the loss."""
        self.guard.require()
        batches: list[Batch | None] = []
        for step in range(first, self.steps):
            batches += self.batches[step].batches
            (sequences,) = self.world.sum(sum(len(batch.packing.lengths) for batch in batches if batch is not None))
            if sequences >= LOOK_OVER * self.world.size:
                break
        with self._autocast():
            looks = look(
                self.model, batches, self.world, sequences=2 if self.objective.pairs else 1, nothing=self._nothing
            )
        looks.act()
        return looks.row()

    def _evaluate(self, done: int) -> dict[str, float]:
        """Measure the model; keep its weights where they are the best of the stage so far."""
        self.guard.require()
        best = self.out / "best" / f"{self.number}.json"
        with self._averaged():
            with self._autocast():
                row = evaluate_now(self.model, self.curriculum, self.stage, self.processor, self.world)
            if self.settings.keep_best and self.world.from_first(lambda: is_better(row, _read(best))):
                self._write(self.out / "best" / f"{self.number}-{self.stage.name}", done)
                if self.world.is_first:
                    write_json(best, {"step": done, **row})
        return row

    def _averaged(self) -> AbstractContextManager[None]:
        """The model with its averaged weights, where there are some."""
        return nullcontext() if self.average is None else self.average.in_place(self.model)

    def _advice(self, step: int) -> str:
        key = f"stages.{self.number}"
        settings = [*(f"{key}.train.{name}" for name in learners(self.stage)), f"{key}.warmup", f"{key}.clip"]
        wider = [f"{key}.precision (to float32)"] if self.stage.precision != "float32" else []
        return how_to_go_on(self.out, self.number, step, [*settings, *wider])

    def _learned(self) -> list[Tensor]:
        """What learns, its moments and its averages."""
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = [value for moments in self.optimizer.state.values() for value in moments.values()]
        return [*weights, *moments, *self._extra().values()]

    def _save(self, step: int, progress: Progress) -> None:
        self.guard.require_weights(step, self._learned(), self.world)
        notes = {"before": self.steps_before, "pending": progress.pending, **self.noted}
        save_state(
            self.out,
            Place(self.number, step),
            self.model,
            self.optimizer,
            self.world,
            extra=self._extra(),
            notes=notes,
            keep=self.settings.keep,
        )

    def _write(self, folder: Path, done: int) -> None:
        """The whole model after `done` steps, written by the first process."""
        self.guard.require_weights(done, self._learned(), self.world)
        save_stage(self.model, self.settings, self.stage, self.before, folder, self.world)
        self.world.wait()


def _read(path: Path) -> dict[str, Any] | None:
    return read_object(path, "delete it; the next measurement is the best then.") if path.is_file() else None


def hash_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(torch.tensor(numbers, dtype=torch.int64).mul(torch.tensor([1_000_003, 10_007, 1])).sum()) % 2**31
