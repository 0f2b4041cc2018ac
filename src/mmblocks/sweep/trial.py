"""One trial of a sweep: a process of its own that trains it, scores it and writes down what came of it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmblocks.errors import BusyError, MMBlocksError, TrainingPreempted
from mmblocks.lock import lock_folder
from mmblocks.storage import write_json
from mmblocks.sweep.runs import METRICS_FILE, read_last_loss
from mmblocks.sweep.trials import RESULT, TRIAL, read_json

LOG, LOCK, STARTS = "log.txt", ".lock", "starts.json"
PRELOADED_MODULES = (
    "mmblocks.sweep.trial",
    "mmblocks.train.loop",
    "mmblocks.eval.tinyworld",
    "transformers.modeling_utils",
    "transformers.generation.utils",
)
"""Imported once by the server that trials are forked from: together they take ten seconds, a small trial may take one."""
BUSY_EXIT_CODE = 75


def run_in_process(folder: Path, scoring: Mapping[str, Any]) -> str:
    """Run a trial in a process of its own and wait for it; what became of it, in a few words."""
    process = _processes().Process(target=run_trial, args=(str(folder), dict(scoring)))
    process.start()
    process.join()
    if process.exitcode == BUSY_EXIT_CODE:
        return "left alone, as another process is running it"
    if process.exitcode:
        write_json(folder / RESULT, {"status": "failed", "reason": _end(process.exitcode)})
    result = read_json(folder / RESULT)
    return _in_words(result) if result["status"] == "done" else f"failed: {result['reason']}"


def _processes() -> Any:
    """Forked from a clean server where that is safe; CUDA does not survive a fork, so there each trial imports anew."""
    import torch

    forks = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    # A child is told its parent's default method, and joblib's, "loky", is known to joblib's own processes alone.
    multiprocessing.set_start_method("forkserver" if forks else "spawn", force=True)
    context = multiprocessing.get_context()
    context.set_forkserver_preload(list(PRELOADED_MODULES))
    return context


def _end(code: int) -> str:
    if code > 0:
        return f"its process ended with exit code {code}; see {LOG}"
    name = signal.Signals(-code).name
    hint = "; perhaps the machine ran out of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}; see {LOG}"


def _in_words(result: Mapping[str, Any]) -> str:
    (name, value), *_ = result["values"].items()
    return f"{name} {value:.3f} in {result['seconds']:.0f} s" if value is not None else "done"


# In the process of the trial -----------------------------------------------------------------------------------------


def run_trial(folder: str, scoring: Mapping[str, Any]) -> None:
    """Train a trial, or go on where it was stopped, and write its result; what it says goes to log.txt."""
    place = Path(folder)
    # Data workers start as those of `mmblocks train` do: from a server of this process they would import torch anew.
    multiprocessing.set_start_method(None, force=True)
    with _lock_or_exit(place), _redirect_output(place / LOG):
        try:
            result = _train_and_score(place, scoring)
        except (MMBlocksError, TrainingPreempted) as error:
            result = {"status": "failed", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}; see {LOG}"}
        write_json(place / RESULT, result)


def _train_and_score(place: Path, scoring: Mapping[str, Any]) -> dict[str, Any]:
    from mmblocks.model.checkpoint import load

    before = read_json(place / RESULT) if (place / RESULT).is_file() else {}
    spent = _train_trial(place) if before.get("status") != "done" else {k: before[k] for k in ("peak_bytes", "seconds")}
    values: dict[str, float | None] = {}
    if scoring["score"] == "tiny":
        model = load(place / "model").to(_device(read_json(place / TRIAL)["recipe"]["device"]))
        values |= _tiny(model, scoring["samples"])
    return {"status": "done", "scoring": dict(scoring), "values": {**values, "loss": read_last_loss(place)}, **spent}


def _train_trial(place: Path) -> dict[str, Any]:
    """Train; the time that all starts of the trial took, and the most memory that this one held."""
    from mmblocks import train

    starts = _starts(place)
    train.run({**read_json(place / TRIAL)["recipe"], "out": str(place)})
    return {
        "peak_bytes": measure_peak_bytes(),
        "seconds": sum(end - begin for begin, end in [*starts[:-1], (starts[-1][0], time.time())]),
    }


def _starts(place: Path) -> list[tuple[float, float]]:
    """When the trial was started and stopped, now included; a killed one stopped when its metrics were last written."""
    path, metrics = place / STARTS, place / METRICS_FILE
    before = read_json(path) if path.is_file() else []
    if before:
        begin, _ = before[-1]
        before[-1] = (begin, max(begin, metrics.stat().st_mtime if metrics.is_file() else begin))
    starts = [*before, (time.time(), 0.0)]
    write_json(path, starts)
    return starts


def _device(named: str) -> str:
    import torch

    return named if named != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _tiny(model: Any, samples: int) -> dict[str, float]:
    """Shares of exact answers: of all questions, and of each task's."""
    from mmblocks.eval.tinyworld import ExactScore, evaluate_tinyworld, sum_scores

    tasks = {task: sum_scores(scores) for task, scores in evaluate_tinyworld(model, samples=samples).items()}
    return {
        "score": sum(tasks.values(), ExactScore(0, 0)).exact_share,
        **{task: score.exact_share for task, score in tasks.items()},
    }


def measure_peak_bytes() -> int:
    """Most memory that this process has held: on CUDA where it worked there, else resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would remember the process that this one was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _lock_or_exit(place: Path) -> Iterator[None]:
    """Leave the process where another one, perhaps left over from a sweep that was killed, is running the trial."""
    try:
        with lock_folder(place, LOCK):
            yield
    except BusyError:
        os._exit(BUSY_EXIT_CODE)


@contextmanager
def _redirect_output(log: Path) -> Iterator[None]:
    """Send everything that this process and its children print to a file, after what is there."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        yield
        sys.stdout.flush()
        sys.stderr.flush()
