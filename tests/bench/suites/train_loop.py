"""What a run does beside forward, backward and optimizer: its loop beside a bare one with the same model and batches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mmblocks.train.automatic import resolve_automatic
from mmblocks.train.batches import StageBatches, StepInput, iterate_batches
from mmblocks.train.checks.run import require_run
from mmblocks.train.distributed import World
from mmblocks.train.optim import compute_lr_factor, scale_learning_rates
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.reports.progress import Progress
from mmblocks.train.stage_run import StageRun
from mmblocks.train.stages import read_checked_run
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, Unequal
from tests.bench.suites.timing import Way, time_in_turns

NAME = "train_loop"
STEPS = 20
RATES = {"encoder": 1e-4, "projector": 1e-3, "backbone": 1e-3}


def measure(run: Run) -> Iterator[Row]:
    """A stage on TinyWorld, four samples a step, its batches made before."""
    run.require_time(before=NAME)
    steps = 3 if run.tiny else STEPS
    with TemporaryDirectory() as folder:
        loops = Loops.make(run, Path(folder), steps)
        loops.require_same_weights()
        times = time_in_turns({"run": loops.way_of_run(), "bare loop": loops.way_of_bare_loop()}, run)
    scenario = f"{steps} steps of 4 samples"
    for name, timing in times.items():
        yield run.row(NAME, scenario, f"step of a {name}", "s", timing.median / steps, spread=timing.spread)
    pairs = zip(times["run"].seconds, times["bare loop"].seconds, strict=True)
    yield run.row(
        NAME, scenario, "share beyond the bare loop", "share", median(ours / bare - 1 for ours, bare in pairs)
    )


class _KeptBatches(StageBatches):
    """The batches of a stage, made once."""

    def __init__(self, batches: StageBatches) -> None:
        self.data, self.device = batches.data, batches.device
        self._made = [batches[step] for step in range(len(batches))]

    def __getitem__(self, step: int) -> StepInput:
        return self._made[step]


class Loops:
    """Both loops over a stage, each from the same weights."""

    def __init__(self, stage_run: StageRun) -> None:
        self._stage_run = stage_run
        stage_run.batches = _KeptBatches(stage_run.batches)
        self._first_weights = deepcopy(stage_run.model.state_dict())

    @classmethod
    def make(cls, run: Run, folder: Path, steps: int) -> Loops:
        """Of a stage of so many steps that would train in a folder."""
        return cls(_make_stage_run(run, folder, steps))

    def way_of_run(self) -> Way:
        return Way(self._run_stage, lambda _: self._prepare_stage())

    def way_of_bare_loop(self) -> Way:
        return Way(lambda _: self._run_bare_loop(), lambda _: self._reset())

    def require_same_weights(self) -> None:
        """Raise `Unequal` where the loops leave other weights."""
        left: list[dict[str, Tensor]] = []
        for way in (self.way_of_run(), self.way_of_bare_loop()):
            way.run(way.ready(0))
            left.append(deepcopy(self._stage_run.model.state_dict()))
        if other := [name for name, weight in left[0].items() if not torch.equal(weight, left[1][name])]:
            raise Unequal(f"{NAME}: a run and a bare loop leave other weights in {', '.join(other[:3])}.")

    def _reset(self) -> None:
        self._stage_run.model.load_state_dict(self._first_weights)
        self._stage_run.optimizer.state.clear()

    def _prepare_stage(self) -> tuple[ExitStack, StepProfiler, Progress]:
        self._reset()
        opened, run = ExitStack(), self._stage_run
        opened.enter_context(redirect_stderr(io.StringIO()))  # a bar is drawn, and not shown
        profiler = opened.enter_context(StepProfiler(run.model, composition=run.composition))
        progress = Progress(run.stage.name, 0, run.num_steps, run.out / "metrics.jsonl", run.settings.log_every)
        return opened, profiler, opened.enter_context(progress)

    def _run_stage(self, ready: tuple[ExitStack, StepProfiler, Progress]) -> None:
        opened, profiler, progress = ready
        with opened:
            self._stage_run.take_steps(0, profiler, progress)

    def _run_bare_loop(self) -> None:
        run = self._stage_run
        model, optimizer, stage = run.model.train(), run.optimizer, run.stage
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for step, step_input in enumerate(iterate_batches(run.batches, 0, 0)):
            optimizer.zero_grad(set_to_none=True)
            for batch in step_input.batches:
                assert batch is not None, "TinyWorld leaves no record out"
                loss = model(batch.to(run.world.device)).loss
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, stage.max_grad_norm)
            scale_learning_rates(optimizer, compute_lr_factor(step, run.num_steps, stage.warmup, stage.schedule))
            optimizer.step()


def _make_stage_run(run: Run, folder: Path, steps: int) -> StageRun:
    world = World(0, 1, run.device)
    stage = {"name": "all", "data": [{"name": "tinyworld", "task": "single"}], "train": RATES, "steps": steps}
    recipe = {
        "model": run.scale.spec.to_dict(),
        "out": str(folder),
        "device": run.device.type,
        "workers": 0,
        "save_every": steps,
        "stages": [{**stage, "global_batch_size": 4}],
    }
    composition = require_run(recipe)
    curriculum = resolve_automatic(read_checked_run(recipe), world.device)
    return StageRun(curriculum, 0, world, composition, before=None, after=folder / "after", steps_before=0)
