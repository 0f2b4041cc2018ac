"""Compare the logits of a checkpoint and of its converted copy on probes, with one model in memory at a time."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
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
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):  # this system does not say it
        free = float("inf")
    short = "" if needed <= free else f"; {free:.1f} GB are free"
    cure = f", and --no-check takes up to {BASE_GB + size * HELD:.1f} GB" if short and checked else ""
    print(f"memory   up to {needed:.1f} GB for {size:.1f} GB of weights{short}{cure}")


def check_logits(
    model: OneVision, read: CheckpointLayout, source: Path, write: CheckpointLayout, written: Path, *, exact: bool
) -> None:
    """Run the source and the result on probes and refuse a result that differs by more than `TOLERANCE`.

    exact: the weights kept their type; otherwise the model in memory, rounded like the result, is compared. The weights of
    the model in memory are freed, so that there is room for the others, one after the other.
    """
    probes = make_probes(model, videos=(read.supports_video or not exact) and write.supports_video)
    if exact and read.can_run:
        _free_weights(model)
        before = _compute_own_code_logits(model, read, source, probes)
    else:
        before = _compute_model_logits(model, probes, read if exact else None)
        _free_weights(model)
    if write.can_run:
        after = _compute_own_code_logits(model, write, written, probes)
    else:
        reread, _ = write.import_model(written, dtype=find_stored_dtype(written))
        after = _compute_model_logits(reread, probes, write)
    differences = [(one - other).abs().max().item() for one, other in zip(before, after, strict=True)]
    for probe, difference in zip(probes, differences, strict=True):
        kinds = Counter(shape.kind for shape in probe.shapes)
        what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items()) or "text"
        print(f"checked  {what}: {len(probe.select_rows())} rows, largest difference of logits {difference:.1e}")
    if not all(difference <= TOLERANCE for difference in differences):
        raise CheckpointError(
            f"the written model's logits differ by {max(differences):.2g} (at most {TOLERANCE:g} is accepted); "
            "nothing was kept."
        )


def _compute_model_logits(
    model: OneVision, probes: Sequence[Probe], replaced: CheckpointLayout | None = None
) -> list[Tensor]:
    """The logits of a model in memory. replaced: the layout whose own code would be run if it were installed."""
    if replaced is not None:
        print(f"checking the model as we read it; the code of {replaced.about} is not here to run")
    with Float32Mode():
        return [compute_our_logits(model, probe, probe.select_rows()) for probe in probes]


def _compute_own_code_logits(
    model: OneVision, layout: CheckpointLayout, folder: Path, probes: Sequence[Probe]
) -> list[Tensor]:
    """The logits of a checkpoint in its own code, whose weights are freed afterwards."""
    run = layout.make_runner(folder, find_stored_dtype(folder))
    with Float32Mode():
        return [run(model, probe, probe.select_rows()) for probe in probes]


def _free_weights(model: OneVision) -> None:
    model.to("meta")
    gc.collect()
