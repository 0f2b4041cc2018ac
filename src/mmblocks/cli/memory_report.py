"""The training side of `mmblocks plan --memory`: what a process needs in each stage, by the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmblocks.cli.tables import align_columns
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.train.estimates.memory import StepMemory

RANKS = (1, 8, 16, 64, 128, 256)
GIB = 2**30
COLUMNS = ("weights", "gradients", "optimizer", "copies", "gathered", "passing", "activations", "total", "between_rows")


def read_ranks(words: Sequence[str]) -> tuple[int, ...]:
    """The numbers of processes that words such as ranks=64 or ranks=8,64 ask for; several sizes without any."""
    given = [part for word in words if word.startswith("ranks=") for part in word.removeprefix("ranks=").split(",")]
    wrong = [part for part in given if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise ConfigError(f"ranks={wrong[0]}: no number of processes; write ranks=64, or several as ranks=8,64.")
    return tuple(map(int, given)) or RANKS


def compute_stage_memory(raw: Mapping[str, Any], ranks: Sequence[int]) -> dict[str, list[StepMemory]]:
    """By stage, for a composed recipe. Raises `ConfigError` for a system, which has no stages."""
    from mmblocks.train.estimates.memory import estimate_stage_memory, read_stages

    if not raw.get("stages"):
        raise ConfigError("--memory is about training, and a system has no stages; name a recipe (`mmblocks recipes`).")
    settings = {"gradient_checkpointing": raw.get("gradient_checkpointing", False), "ema": raw.get("ema") is not None}
    return {stage.name: estimate_stage_memory(raw["model"], stage, ranks, **settings) for stage in read_stages(raw)}


def format_memory(found: Mapping[str, Sequence[StepMemory]]) -> Iterator[str]:
    """One table per stage, in GiB for each process."""
    for name, rows in found.items():
        sizes = sorted({(row.tokens, row.views) for row in rows})
        yield f"{name}: GiB per process, rows of " + ", ".join(f"{t} tokens and {v} views" for t, v in sizes)
        yield from align_columns([("ranks", *(c.replace("_", " ") for c in COLUMNS)), *map(_row, rows)])
        yield ""
    yield "between rows: whole gradients that wait where a process has several rows a step and accumulate=local; not in the total."


def _row(memory: StepMemory) -> tuple[str, ...]:
    return str(memory.ranks), *(f"{memory.to_dict()[column] / GIB:.1f}" for column in COLUMNS)
