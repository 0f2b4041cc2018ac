"""`mmblocks plan --memory`: the memory that a process needs in each stage, by the number of processes."""

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
    """The numbers of processes in words like ranks=64 or ranks=8,64; `RANKS` without such a word."""
    numbers = [part for word in words if word.startswith("ranks=") for part in word.removeprefix("ranks=").split(",")]
    wrong = [part for part in numbers if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise ConfigError(f"ranks={wrong[0]}: no number of processes; write ranks=64, or several as ranks=8,64.")
    return tuple(map(int, numbers)) or RANKS


def compute_stage_memory(raw: Mapping[str, Any], ranks: Sequence[int]) -> dict[str, list[StepMemory]]:
    """By stage, for a composed recipe. Raises `ConfigError` for a system, which has no stages."""
    from mmblocks.train.estimates.memory import estimate_stage_memory, read_stages

    if not raw.get("stages"):
        raise ConfigError("--memory is about training, and a system has no stages; name a recipe (`mmblocks recipes`).")
    settings = {
        "gradient_checkpointing": raw.get("gradient_checkpointing", False),
        "ema": raw.get("ema") is not None,
        "on_gpu": raw.get("device") != "cpu",
    }
    return {stage.name: estimate_stage_memory(raw["model"], stage, ranks, **settings) for stage in read_stages(raw)}


def format_memory(stages: Mapping[str, Sequence[StepMemory]]) -> Iterator[str]:
    """One table per stage, in GiB for each process."""
    for name, rows in stages.items():
        sizes = sorted({(row.tokens, row.views) for row in rows})
        yield f"{name}: GiB per process, rows of " + ", ".join(f"{t} tokens and {v} views" for t, v in sizes)
        table = [(str(row.ranks), *(f"{row.to_dict()[column] / GIB:.1f}" for column in COLUMNS)) for row in rows]
        yield from align_columns([("ranks", *(c.replace("_", " ") for c in COLUMNS)), *table])
        yield ""
    yield "between rows: whole gradients kept between rows, with several rows per process and step and accumulate=local; not in the total."
