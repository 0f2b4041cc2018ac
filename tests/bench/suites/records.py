"""Opening files of records: time and memory by their number, the first time and again, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from mmblocks.errors import MMBlocksError
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run

NAME = "records"
FIRST, AGAIN, MEMORY, READING = "opened first", "opened again", "memory a record", "records read"
QUANTITIES = {FIRST: "s", AGAIN: "s", MEMORY: "bytes", READING: "records/s"}
PROGRAM = """\
import json, random, sys, time
from pathlib import Path
from mmblocks.data.records.json_records import open_records

def read_private():  # of this process alone: pages of mapped files are shared with others
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

path = Path(sys.argv[1])
open_records(path.with_name(f"few{path.suffix}"))  # what is imported and compiled when it is first used
before, begin = read_private(), time.process_time()
records = open_records(path)
seconds, memory = time.process_time() - begin, read_private() - before
chosen = random.Random(0).sample(range(len(records)), min(len(records), 2000))
begin = time.process_time()
for number in chosen:
    records[number]
print(json.dumps([seconds, memory, len(chosen) / (time.process_time() - begin)]))
"""


def measure(run: Run) -> Iterator[Row]:
    """A list on one line and one record a line, records of about 600 bytes.

    Memory is that of the process alone after it has opened a file whose places are kept, where they are: a small file's
    are not.
    """
    for number in (100, 200) if run.tiny else (10_000, 100_000, 1_000_000):
        for suffix in (".json", ".jsonl"):
            run.require_time(before=f"{number} records")
            with TemporaryDirectory() as folder:
                path = Path(folder) / f"records{suffix}"
                write_records(path, number)
                write_records(path.with_name(f"few{suffix}"), 2)
                yield from _measure_file(run, path, number)


def write_records(path: Path, number: int) -> None:
    """A file of records with one image and two turns each."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[" if path.suffix == ".json" else "")
        for i in range(number):
            turns = [{"from": ("human", "gpt")[t % 2], "value": f"{i} red é " * 12} for t in range(4)]
            record = json.dumps({"id": str(i), "image": f"{i:09}.jpg", "conversations": turns}, ensure_ascii=False)
            behind = "\n" if path.suffix == ".jsonl" else ", " if i < number - 1 else "]"
            file.write(record + behind)


def _measure_file(run: Run, path: Path, number: int) -> Iterator[Row]:
    rounds = []
    for _ in range(run.repeats):
        with TemporaryDirectory() as cache:
            first, (again, memory, rate) = (_open_in_process(path, cache) for _ in range(2))
            rounds.append((first[0], again, memory / number, rate))
    kind = "a list" if path.suffix == ".json" else "lines"
    for (quantity, unit), values in zip(QUANTITIES.items(), zip(*rounds, strict=True), strict=True):
        yield run.row(NAME, f"{number:,} records, {kind}", quantity, unit, median(values))


def _open_in_process(path: Path, cache: str) -> tuple[float, float, float]:
    """Processor seconds of opening, private bytes, and records read a second."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "XDG_CACHE_HOME": cache,
    }
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    if child.returncode:
        raise MMBlocksError(f"opening {path} failed:\n{child.stderr}")
    seconds, memory, rate = json.loads(child.stdout.splitlines()[-1])
    return seconds, memory, rate
