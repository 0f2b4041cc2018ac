"""Everything that a GPU is asked, in four commands that each end within ten minutes: `mmblocks bench --gpu 1` to 4.

What the deadline leaves undone is told. Rows are written as they are found, so an interrupted command loses none.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from mmblocks.bench import attention
from mmblocks.bench.rows import Row
from mmblocks.bench.run import Run
from mmblocks.bench.suites import measured
from mmblocks.errors import ConfigError

LIMIT_S = 570.0
"""A command that may run for ten minutes has to come back with what it found."""
COMMANDS: Mapping[int, tuple[tuple[str, tuple[str, ...]], ...]] = {
    1: (("0_5b", ("ceil", "attention", "pool_kernel", "pool")),),
    2: (("0_5b", ("vit", "prefill", "second_question")), ("7b", ("prefill", "second_question"))),
    3: (("0_5b", ("decode",)), ("7b", ("decode",))),
    4: (("0_5b", ("train", "memory")), ("7b", ("train", "memory"))),
}
"""Suites by size of model."""
ORDER = "attention_order.json"


def run_of(number: int, *, tiny: bool, limit_s: float = LIMIT_S) -> Run:
    """Settings of a command: bfloat16 on the GPU, ten rounds of four input sets after three that are not kept.

    tiny: the same on the CPU with the least model, as a proof that it runs. Raises `ConfigError` without a GPU.
    """
    if number not in COMMANDS:
        raise ConfigError(f"--gpu {number}: there are commands {', '.join(map(str, COMMANDS))}.")
    command = f"mmblocks bench --gpu {number}{' --tiny' * tiny}"
    ends = time.monotonic() + limit_s
    if tiny:
        return Run(tiny=True, repeats=1, warmups=0, input_sets=1, command=command, ends=ends)
    if not torch.cuda.is_available():
        raise ConfigError("--gpu: torch sees no CUDA device; --tiny goes through the same on the CPU.")
    return Run(
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        repeats=10,
        warmups=3,
        input_sets=4,
        command=command,
        ends=ends,
    )


def run_command(number: int, run: Run, out: Path | None) -> Iterator[Row | str]:
    """Rows of a command, and texts about what was not done; a suite that fails is told and does not end the others."""
    for size, suites in COMMANDS[number][: 1 if run.tiny else None]:  # tiny is one size
        for suite in suites:
            yield from _suite(suite, run.at(size), out)


def _suite(name: str, run: Run, out: Path | None) -> Iterator[Row | str]:
    found: list[Row] = []
    try:
        for told in measured([name], run, out):
            if isinstance(told, Row):
                found.append(told)
            yield told
    except Exception:  # the next suite may well run, and time on a GPU is dear
        yield f"{name} at {run.size}: failed after {len(found)} rows:\n{traceback.format_exc()}"
    if name == "attention" and found and out is not None:
        path = out.with_name(ORDER)
        attention.write_order(path, found, run)
        yield f"attention: the order of ways is in {path}; set MMBLOCKS_ATTENTION_TABLE to use it"
