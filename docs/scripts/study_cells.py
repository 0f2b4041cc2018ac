"""The cells of docs/scripts/study.py: one training and its measurements each, in processes of their own, skipped when finished."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from study_questions import Arm, Measure, Question

from mmblocks import conf
from mmblocks.errors import ConfigError
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping.swap import plan_swap
from mmblocks.sweep.trial import PRELOADED_MODULES, run_in_process
from mmblocks.sweep.trials import RESULT, TRIAL, read_json, write_json

BASE, MEASURED, START, LOG = "base", "measured.json", "start", "measuring.log"
SCORED_BY_US = {"score": "loss"}
"""What `run_apart` is asked for: to train, and nothing more than the loss."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Where a study lives and how much of it is done: steps times `budget`, held-out questions of each measure."""

    out: Path
    budget: float
    samples: int


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do as soon as the folder `needs` is there; `run` says in a few words what came of it."""

    name: str
    needs: Path | None
    run: Callable[[], str]

    @property
    def is_ready(self) -> bool:
        return self.needs is None or self.needs.is_dir()


def jobs(questions: Sequence[Question], effort: Effort) -> list[Job]:
    """All cells, the base run first, longest next; every recipe is composed and checked against what is there."""
    base = _base(effort)
    cells = [Cell(q, arm, seed, effort) for q in questions for arm in q.arms for seed in range(arm.seeds)]
    recipes = [cell.recipe() for cell in cells]
    waiting = [
        (0 if recipe is None else -recipe["stages"][0]["steps"], Job(cell.name, cell.start, _bound(cell, recipe)))
        for cell, recipe in zip(cells, recipes, strict=True)
    ]
    return [base, *(job for _, job in sorted(waiting, key=lambda pair: pair[0]))]


def _bound(cell: Cell, recipe: dict[str, Any] | None) -> Callable[[], str]:
    return lambda: cell.run(recipe)


def _base(effort: Effort) -> Job:
    folder = effort.out / BASE
    recipe = conf.compose("tiny/onevision", [f"budget={effort.budget}", "device=cpu", "workers=0"])
    recipe["out"] = str(folder)
    _require_same(folder, recipe)
    return Job("base run, tiny/onevision", None, lambda: _trained(folder, recipe))


def _trained(folder: Path, recipe: dict[str, Any]) -> str:
    """Train, or go on with what was stopped. Raises `ConfigError` with the reason where it fails."""
    if _is_done(folder):
        return "done before"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TRIAL, {"recipe": recipe})
    run_in_process(folder, SCORED_BY_US)
    result = read_json(folder / RESULT)
    if result["status"] != "done":
        raise ConfigError(f"{folder}: {result['reason']}")
    return f"trained in {result['seconds']:.0f} s"


def _is_done(folder: Path) -> bool:
    return (folder / RESULT).is_file() and read_json(folder / RESULT)["status"] == "done"


def _require_same(folder: Path, recipe: dict[str, Any]) -> None:
    if (folder / TRIAL).is_file() and read_json(folder / TRIAL)["recipe"] != recipe:
        raise ConfigError(f"{folder} was trained with other settings; delete it, or name another folder with --out.")


@cache
def _composed(budget: float, overrides: tuple[str, ...]) -> dict[str, Any]:
    return conf.compose("tiny/study", [f"budget={budget}", *overrides])


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm of a question with one seed."""

    question: Question
    arm: Arm
    seed: int
    effort: Effort

    @property
    def name(self) -> str:
        return f"{self.question.name}/{self.arm.name}_seed-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.effort.out / self.name

    @property
    def start(self) -> Path:
        return self.effort.out / BASE / "stages" / self.arm.start

    @property
    def wanted(self) -> dict[str, Any]:
        """What its measurements must have been made with."""
        measures = [asdict(m) for m in self.question.measures if m.concerns(self.arm.name)]
        return {"samples": self.effort.samples, "visual": self.question.visual, "measures": measures}

    def recipe(self) -> dict[str, Any] | None:
        """The composed run, None where nothing is trained."""
        if self.arm.overrides is None:
            return None
        start = self.folder / START if self.arm.changes else self.start
        own = {"out": str(self.folder), "weights": str(start), "seed": self.seed}
        recipe = {**_composed(self.effort.budget, self.arm.overrides), **own}
        if self.arm.changes:
            recipe["model"] = plan_swap(ModelSpec.from_dict(recipe["model"]), self.arm.changes).to_dict()
        _require_same(self.folder, recipe)
        return recipe

    def run(self, recipe: dict[str, Any] | None) -> str:
        """Exchange parts, train, measure: whatever of it is not done."""
        begin = time.time()
        if self.measured() is not None:
            return "done before"
        self.folder.mkdir(parents=True, exist_ok=True)
        if recipe is not None and not _is_done(self.folder):
            if self.arm.changes:
                apart(self.folder, exchange, self.start, self.arm.changes, self.seed, self.folder / START)
            _trained(self.folder, recipe)
        model = self.start if recipe is None else self.folder / "model"
        measures = [m for m in self.question.measures if m.concerns(self.arm.name)]
        apart(
            self.folder, measure, model, measures, self.question.visual, self.effort.samples, self.folder / "found.json"
        )
        found = read_json(self.folder / "found.json")
        write_json(self.folder / MEASURED, {"wanted": _plain(self.wanted), "seconds": time.time() - begin, **found})
        scores = (f"{name} {right / max(asked, 1):.0%}" for name, (right, asked) in found["scores"].items())
        return f"{', '.join(scores)} in {time.time() - begin:.0f} s"

    def measured(self) -> dict[str, Any] | None:
        """What was found, None as long as this cell is not finished as it is wanted."""
        path = self.folder / MEASURED
        found = read_json(path) if path.is_file() else None
        return found if found is not None and found["wanted"] == _plain(self.wanted) else None


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


# In processes of their own ------------------------------------------------------------------------------------------


def apart(folder: Path, work: Callable[..., None], *given: Any) -> None:
    """Do something in a process of its own, which logs to a file in `folder`. Raises `ConfigError` where it fails."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload(list(PRELOADED_MODULES))
    process = context.Process(target=_logged, args=(folder / LOG, work, given))
    process.start()
    process.join()
    if process.exitcode:
        raise ConfigError(f"a process ended with exit code {process.exitcode}; see {folder / LOG}")


def _logged(log: Path, work: Callable[..., None], given: Sequence[Any]) -> None:
    import torch

    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        torch.set_num_threads(1)
        work(*given)


def exchange(start: Path, changes: dict[str, Any], seed: int, out: Path) -> None:
    """Write the model that an arm starts from."""
    from mmblocks.model.checkpoint import load
    from mmblocks.model.swapping.swap import save_swap_result, swap

    save_swap_result(swap(load(start), changes, seed=seed), out, start)


def measure(folder: Path, measures: Sequence[Measure], visual: str | None, samples: int, out: Path) -> None:
    """Ask a model and write how many answers were exact, of how many; and the tokens of the reference visual."""
    from mmblocks.eval.tinyworld import ExactScore, evaluate_tinyworld
    from mmblocks.model.budget import parse_visual_shape
    from mmblocks.model.checkpoint import load
    from mmblocks.model.swapping.swap import swap

    model = load(folder).eval()
    tables: dict[str, dict[str, ExactScore]] = {}
    scores: dict[str, list[int]] = {}
    for one in measures:
        key = f"{one.task} {one.visuals} {one.changes}"
        if key not in tables:
            asked = swap(model, one.changes).model if one.changes else model
            tables[key] = evaluate_tinyworld(asked, [one.task], samples=samples, visuals=one.visuals)[one.task]
        counted = [score for kind, score in tables[key].items() if not one.kinds or kind in one.kinds]
        total = sum(counted, ExactScore(0, 0))
        scores[one.name] = [total.num_right, total.num_questions]
    tokens = None if visual is None else model.router.plan([parse_visual_shape(visual)])[0].plan.num_tokens
    write_json(out, {"scores": scores, "tokens": tokens})


# One after the other, some side by side -----------------------------------------------------------------------------


def run_all(waiting: Sequence[Job], processes: int, clock: Path) -> bool:
    """Run jobs as they become ready, telling each; whether all went well. `clock` keeps when work was done."""
    left, running, done, begun = [*waiting], {}, 0, time.time()
    starts = read_json(clock) if clock.is_file() else []
    fine = True
    with ThreadPoolExecutor(processes) as pool:
        while left or running:
            for job in [job for job in left if job.is_ready][: processes - len(running)]:
                left.remove(job)
                running[pool.submit(job.run)] = job
            if not running:
                break
            for ended in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                done += 1
                where = f"[{done}/{len(waiting)}] {time.time() - begun:5.0f} s  {running.pop(ended).name}"
                said, went_well = _outcome(ended)
                fine = fine and went_well
                print(f"{where}: {said}", flush=True)
                if said != "done before":
                    write_json(clock, [*starts, [begun, time.time()]])
    for job in left:
        print(f"left out, as {job.needs} was never made: {job.name}", flush=True)
    return fine and not left


def _outcome(ended: Future[str]) -> tuple[str, bool]:
    error = ended.exception()
    return (f"failed: {error}", False) if error is not None else (ended.result(), True)
