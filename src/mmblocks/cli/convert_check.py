"""Whether a checkpoint and what was made of it compute the same: logits on probes, one model in memory at a time."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError
from mmblocks.model.convert.float32 import Float32Mode
from mmblocks.model.convert.probe import TOLERANCE, Probe, compute_our_logits, make_probes
from mmblocks.model.convert.weights import find_stored_dtype, measure_gigabytes

if TYPE_CHECKING:
    from mmblocks.model.convert.layout import CheckpointLayout
    from mmblocks.model.onevision import OneVision

BASE_GB = 1.0
"""Gigabytes of Python with torch and transformers."""
HELD, CHECKED = 1.2, 2.0
"""Memory in sizes of the weights while a model is read and written, and while one is run in float32, a weight at a time.

Measured: 1.1, and 1.2 to 1.3; an output layer that is half of a small model is half of it again in float32.
"""


def print_memory_need(source: Path, dtype_name: str | None, *, checked: bool) -> None:
    """Print how much memory a conversion takes, and whether there is less."""
    size = measure_gigabytes(source, getattr(torch, dtype_name) if dtype_name else None)
    needed = BASE_GB + size * (CHECKED if checked else HELD)
    free = _read_free_gigabytes()
    short = "" if free is None or needed <= free else f"; {free:.1f} GB are free"
    cure = f", and --no-check takes up to {BASE_GB + size * HELD:.1f} GB" if short and checked else ""
    print(f"memory   up to {needed:.1f} GB for {size:.1f} GB of weights{short}{cure}")


def check_logits(
    model: OneVision, read: CheckpointLayout, source: Path, write: CheckpointLayout, written: Path, *, exact: bool
) -> None:
    """Run the source and the result on probes and refuse a result that differs by more than `TOLERANCE`.

    exact: the weights kept their type; otherwise the model in memory, rounded as what was written, is compared. The
    model in memory is left without weights, so that there is room for the others, one after the other.
    """
    shown = make_probes(model, videos=(read.supports_video or not exact) and write.supports_video)
    own_code = exact and read.can_run
    before = [] if own_code else _compute_model_logits(model, shown, read if exact else None)
    _empty(model)
    before = before or _compute_own_code_logits(model, read, source, shown)
    after = _compute_own_code_logits(model, write, written, shown) if write.can_run else _as_read(write, written, shown)
    differences = [(one - other).abs().max().item() for one, other in zip(before, after, strict=True)]
    for probe, difference in zip(shown, differences, strict=True):
        _say(probe, difference)
    if not all(difference <= TOLERANCE for difference in differences):
        raise CheckpointError(
            f"the written model's logits differ by {max(differences):.2g} (at most {TOLERANCE:g} is let pass); "
            "nothing was kept."
        )


def _compute_model_logits(model: OneVision, shown: Sequence[Probe], door: CheckpointLayout | None) -> list[Tensor]:
    if door is not None:
        _print_missing_code(door)
    return _run_probes(lambda probe, rows: compute_our_logits(model, probe, rows), shown)


def _compute_own_code_logits(
    model: OneVision, door: CheckpointLayout, folder: Path, shown: Sequence[Probe]
) -> list[Tensor]:
    """The logits of a checkpoint in its own code, whose weights are gone afterwards."""
    run = door.make_runner(folder, find_stored_dtype(folder))
    return _run_probes(lambda probe, rows: run(model, probe, rows), shown)


def _as_read(door: CheckpointLayout, folder: Path, shown: Sequence[Probe]) -> list[Tensor]:
    _print_missing_code(door)
    return _compute_model_logits(door.import_model(folder, dtype=find_stored_dtype(folder))[0], shown, None)


def _run_probes(run: Callable[[Probe, Tensor], Tensor], shown: Sequence[Probe]) -> list[Tensor]:
    with Float32Mode():
        return [run(probe, probe.select_rows()) for probe in shown]


def _empty(model: OneVision) -> None:
    model.to("meta")
    gc.collect()


def _print_missing_code(door: CheckpointLayout) -> None:
    print(f"checking the model as we read it; the code of {door.about} is not here to run")


def _say(probe: Probe, difference: float) -> None:
    kinds = Counter(shape.kind for shape in probe.shapes)
    what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items()) or "text"
    print(f"checked  {what}: {len(probe.select_rows())} rows, largest difference of logits {difference:.1e}")


def _read_free_gigabytes() -> float | None:
    """Memory that a new program can have, where the system says it."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        return None
