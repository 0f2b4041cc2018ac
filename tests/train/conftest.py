"""A recipe of two short stages; runs in processes of their own, forked from the one that has imported torch."""

import copy
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

import mmblocks
from mmblocks.errors import TrainingPreempted
from mmblocks.train import run, stage_run
from mmblocks.train.distributed import World, join_processes

WORLD = [{"name": "tinyworld", "task": "single", "weight": 2.0}, {"name": "tinyworld", "task": "video"}]
FORK = multiprocessing.get_context("fork")
Patch = Callable[[int], None]


@pytest.fixture(scope="session", autouse=True)
def few_records_checked_before_a_stage():
    """Eight of each source instead of fifty, which took a quarter of a tiny run; `data/test_lint.py` is about the checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_run, "RECORDS_TO_LINT", 8)
        yield


@pytest.fixture(scope="session")
def recipe_in(tiny_spec):
    """The recipe with its folder."""
    align = {"name": "align", "data": WORLD, "train": {"projector": 1e-3}, "steps": 3, "global_batch_size": 3}
    rates = {"projector": 1e-3, "backbone": 1e-3}
    whole = {"name": "all", "data": WORLD, "train": rates, "steps": 5, "global_batch_size": 2}
    run = {"model": tiny_spec, "save_every": 2, "log_every": 2, "stages": [align, whole]}
    return lambda out: copy.deepcopy({**run, "out": str(out)})


@pytest.fixture
def recipe(recipe_in, tmp_path):
    return recipe_in(tmp_path / "run")


@pytest.fixture(scope="session")
def weights():
    """The state dict of a model's folder."""
    return lambda folder: mmblocks.load(folder).state_dict()


@pytest.fixture(scope="session")
def same():
    """Whether two state dicts are equal to the bit."""
    return lambda one, other: one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="session")
def undisturbed(trained, tmp_path_factory):
    """The folder of a whole run of a recipe in `ranks` processes, 1 being this one: each is run once, and then only read."""
    folders: dict[str, Path] = {}

    def folder_of(recipe: dict, ranks: int = 1) -> Path:
        recipe = {key: value for key, value in recipe.items() if key != "out"}
        name = json.dumps([recipe, ranks], sort_keys=True)
        if name not in folders:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            whole = {**copy.deepcopy(recipe), "out": str(out)}
            if ranks == 1:
                run(whole)
            else:
                assert trained(whole, ranks=ranks) == [0] * ranks
            folders[name] = out
        return folders[name]

    return folder_of


@pytest.fixture(scope="session")
def killed_in_step():
    """A patch for `trained`: the process kills itself at the beginning of its `call`th step."""

    def patched(call: int) -> Patch:
        def patch(rank: int) -> None:
            real, calls = stage_run.Stepper.__call__, []

            def step(*arguments):
                calls.append(1)
                if len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            stage_run.Stepper.__call__ = step

        return patch

    return patched


@pytest.fixture(scope="session")
def trained():
    """Run a recipe in `ranks` processes as torchrun would, `patch(rank)` being called in each before it begins; returns
    their exit codes, negative ones for signals. What takes more than `seconds` is killed and fails the test.
    """

    def train(recipe: dict, ranks: int = 1, patch: Patch = lambda rank: None, seconds: float = 120) -> list[int | None]:
        port = _free_port()
        started = [FORK.Process(target=_train, args=(recipe, rank, ranks, port, patch)) for rank in range(ranks)]
        for process in started:
            process.start()
        return _exit_codes(started, seconds)

    return train


@pytest.fixture
def together(tmp_path):
    """Call `work(world)` in two processes that share a world; returns what each gave back, by rank."""

    def start(work: Callable[[World], Any], seconds: float = 120) -> list[Any]:
        port = _free_port()
        files = [tmp_path / f"rank{rank}.pt" for rank in range(2)]
        started = [FORK.Process(target=_work, args=(work, rank, port, file)) for rank, file in enumerate(files)]
        for process in started:
            process.start()
        assert _exit_codes(started, seconds) == [0, 0]
        return [torch.load(file, weights_only=False) for file in files]

    return start


def _work(work: Callable[[World], Any], rank: int, port: int, file: Path) -> None:
    _join(rank, 2, port)
    with join_processes("cpu", 60) as world:
        torch.save(work(world), file)


def _exit_codes(started: list[BaseProcess], seconds: float) -> list[int | None]:
    end = time.monotonic() + seconds
    while any(process.is_alive() for process in started) and time.monotonic() < end:
        time.sleep(0.01)  # `join` with a limit waits for the children of a process too
    late = [process for process in started if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} processes have not ended after {seconds} s"
    return [process.exitcode for process in started]


def _train(recipe: dict, rank: int, ranks: int, port: int, patch: Patch) -> None:
    _join(rank, ranks, port)
    patch(rank)
    try:
        run(recipe)
    except TrainingPreempted as stop:  # as the command does
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)


def _join(rank: int, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # the one before is shared with the parent, which a killed process would hold up
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
