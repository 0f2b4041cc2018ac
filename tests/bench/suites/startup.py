"""How long commands take to start: processor time of whole processes, less what importing torch and transformers takes.

Two references run in turns with each command: one that imports torch and transformers, and one that also imports the
modules inside of transformers that the command came to load, such as those of Qwen2. All end without taking the
interpreter down, which would cost what has imported more the more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from mmblocks.assets import find_media
from mmblocks.errors import MMBlocksError
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run

NAME = "startup"
WHOLE, OWN, OWN_BEYOND_MODULES = "whole process", "beyond torch and transformers", "beyond the modules they load, too"
MODULES = "modules of mmblocks"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}

COMMAND = """\
import json, os, sys
from mmblocks.cli import main

def finish(code):
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(sys.modules), file)
    sys.stdout.flush()
    os._exit(code)
"""
TO_ITS_END = f"{COMMAND}\nfinish(main(sys.argv[2:]))"
TO_THE_FIRST_STEP = f"""{COMMAND}
from mmblocks.train.step import Stepper

def take_first_step(*arguments):
    take_step(*arguments)
    finish(0)

take_step, Stepper.__call__ = Stepper.__call__, take_first_step
main(sys.argv[2:])
"""
REFERENCE = """\
import torch, transformers
import contextlib, importlib, json, os, sys

for name in json.load(open(sys.argv[1])):
    with contextlib.suppress(Exception):
        importlib.import_module(name)
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Start:
    """A command, and the program that runs it to where its start ends."""

    words: Sequence[str]
    program: str = TO_ITS_END


def list_starts() -> Mapping[str, Start]:
    """What is started, by the name in the table."""
    picture = str(find_media("image.png"))
    three_steps = ("sight=null", "stop_after=text", "workers=0", "budget=0.028", "out=run")
    return {
        "list": Start(("list",)),
        "check tiny/onevision": Start(("check", "tiny/onevision")),
        "plan onevision/7b": Start(("plan", "onevision/7b", "image=100x100")),
        "chat, one question": Start(("chat", "--image", picture, "--ask", "How many shapes are there?")),
        "train, first step": Start(("train", "tiny/onevision", *three_steps), TO_THE_FIRST_STEP),
    }


def measure(run: Run) -> Iterator[Row]:
    """Each start in turns with its references, in processes of their own; `tiny` starts the lightest alone."""
    for name, start in list(list_starts().items())[: 1 if run.tiny else None]:
        run.require_time(before=name)
        yield from measure_start(run, name, start)


def measure_start(run: Run, name: str, start: Start) -> Iterator[Row]:
    """Medians over the rounds; differences are taken within a round. A first one is not kept: it reads from disk."""
    _, modules = run_start(start)
    references = list_references(modules)
    rounds = [(run_start(start)[0], *map(time_imports, references.values())) for _ in range(run.repeats)]
    yield run.row(NAME, name, WHOLE, "s", median(whole for whole, *_ in rounds))
    for number, quantity in enumerate(references, start=1):
        yield run.row(NAME, name, quantity, "s", median(times[0] - times[number] for times in rounds))
    yield run.row(NAME, name, MODULES, "modules", sum(m.partition(".")[0] == "mmblocks" for m in modules))


def list_references(modules: Sequence[str]) -> dict[str, list[str]]:
    """Modules that are imported beside torch and transformers, by what is left of a start without them."""
    if "torch" not in modules:
        return {}
    return {OWN: [], OWN_BEYOND_MODULES: [m for m in modules if m.startswith("transformers.")]}


def run_start(start: Start) -> tuple[float, list[str]]:
    """Processor seconds of a start, and every module that it imported."""
    with TemporaryDirectory() as folder:
        modules = Path(folder) / "modules.json"
        seconds = measure_processor_seconds([start.program, str(modules), *start.words], Path(folder))
        return seconds, json.loads(modules.read_text(encoding="utf-8"))


def time_imports(modules: Sequence[str]) -> float:
    """Processor seconds of a process that imports torch, transformers and these modules."""
    with TemporaryDirectory() as folder:
        listed = Path(folder) / "modules.json"
        listed.write_text(json.dumps(modules), encoding="utf-8")
        return measure_processor_seconds([REFERENCE, str(listed)], Path(folder))


def measure_processor_seconds(program: Sequence[str], folder: Path) -> float:
    """User and system time of `python -c` with these arguments, run in a folder. Raises `MMBlocksError` if it fails."""
    errors = folder / "errors.txt"
    with errors.open("w") as told:
        child = subprocess.Popen(
            [sys.executable, "-c", *program],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.DEVNULL,
            stderr=told,
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise MMBlocksError(f"a start failed:\n{errors.read_text(encoding='utf-8')}")
    return usage.ru_utime + usage.ru_stime
