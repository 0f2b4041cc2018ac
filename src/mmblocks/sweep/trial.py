"""One trial of a sweep: a process of its own that trains it, scores it and writes down what came of it."""

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mmblocks.errors import BusyError, MMBlocksError, TrainingPreempted
from mmblocks.lock import lock_folder
from mmblocks.storage import write_json
from mmblocks.sweep.runs import METRICS_FILE, read_last_loss
from mmblocks.sweep.scores import TRAINING_LOSS, format_score, measure_score
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
    """Run a trial in a process of its own and wait for it; what came of it, in a few words."""
    import torch

    # Forked from a clean server where that is safe; CUDA does not survive a fork, so there each trial imports anew.
    forks = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    # A child is given its parent's default method, and joblib's, "loky", is known to joblib's own processes alone.
    multiprocessing.set_start_method("forkserver" if forks else "spawn", force=True)
    context: Any = multiprocessing.get_context()
    context.set_forkserver_preload(list(PRELOADED_MODULES))
    process = context.Process(target=run_trial, args=(str(folder), dict(scoring)))
    process.start()
    process.join()
    if process.exitcode == BUSY_EXIT_CODE:
        return "left alone, as another process is running it"
    if process.exitcode:
        end = f"ended with exit code {process.exitcode}"
        if process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            end = f"was ended by {name}{'; perhaps the machine ran out of memory' if name == 'SIGKILL' else ''}"
        write_json(folder / RESULT, {"status": "failed", "reason": f"its process {end}; see {LOG}"})
    result = read_json(folder / RESULT)
    if result["status"] != "done":
        return f"failed: {result['reason']}"
    (name, value), *_ = result["values"].items()
    return f"{name} {format_score(name, value)} in {result['seconds']:.0f} s"


# In the process of the trial -----------------------------------------------------------------------------------------


def run_trial(folder: str, scoring: Mapping[str, Any]) -> None:
    """Train a trial, or resume it, and write its result; what it prints goes to log.txt."""
    place = Path(folder)
    # Data workers start as those of `mmblocks train` do: from a server of this process they would import torch anew.
    multiprocessing.set_start_method(None, force=True)
    lock = ExitStack()
    try:
        lock.enter_context(lock_folder(place, LOCK))
    except BusyError:  # another process, perhaps left over from a sweep that was killed, is running the trial
        os._exit(BUSY_EXIT_CODE)
    with lock, _redirect_output(place / LOG):
        try:
            result = _train_and_score(place, scoring)
        except (MMBlocksError, TrainingPreempted) as error:
            result = {"status": "failed", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}; see {LOG}"}
        write_json(place / RESULT, result)


def _train_and_score(place: Path, scoring: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's result: its numbers, the time that all its starts took, and the most memory that this one held."""
    recipe = read_json(place / TRIAL)["recipe"]
    before = read_json(place / RESULT) if (place / RESULT).is_file() else {}
    if before.get("status") == "done":
        spent = {name: before[name] for name in ("peak_bytes", "seconds")}
    else:
        from mmblocks import train

        starts = _record_start(place)
        train.run({**recipe, "out": str(place)})
        ended = [*starts[:-1], (starts[-1][0], time.time())]
        spent = {"peak_bytes": measure_peak_bytes(), "seconds": sum(end - begin for begin, end in ended)}
    found = measure_score(place, scoring, recipe["device"], skips=recipe["broken"] == "skip")
    values = {**found, TRAINING_LOSS: read_last_loss(place)}
    return {"status": "done", "scoring": dict(scoring), "values": values, **spent}


def _record_start(place: Path) -> list[tuple[float, float]]:
    """When the trial was started and stopped, now included; a killed one stopped when its metrics were last written."""
    path, metrics = place / STARTS, place / METRICS_FILE
    starts = read_json(path) if path.is_file() else []
    if starts:
        begin, _ = starts[-1]
        starts[-1] = (begin, max(begin, metrics.stat().st_mtime if metrics.is_file() else begin))
    starts.append((time.time(), 0.0))
    write_json(path, starts)
    return starts


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
def _redirect_output(log: Path) -> Iterator[None]:
    """Send everything that this process and its children print to a file, after what is there."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        yield
        sys.stdout.flush()
        sys.stderr.flush()
