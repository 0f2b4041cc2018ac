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
from mmblocks.model.convert.float32 import InFloat32
from mmblocks.model.convert.probe import TOLERANCE, Probe, our_logits, probes
from mmblocks.model.convert.weights import stored_dtype, stored_gigabytes

if TYPE_CHECKING:
    from mmblocks.model.convert.door import Door
    from mmblocks.model.onevision import OneVision

BARE = 1.0
"""Gigabytes of Python with torch and transformers."""
HELD, CHECKED = 1.2, 2.0
"""Memory in sizes of the weights while a model is read and written, and while one is run in float32, a weight at a time.

Measured: 1.1, and 1.2 to 1.3; an output layer that is half of a small model is half of it again in float32.
"""


def say_memory(source: Path, dtype_name: str | None, *, checked: bool) -> None:
    """Print how much memory a conversion takes, and whether there is less."""
    size = stored_gigabytes(source, getattr(torch, dtype_name) if dtype_name else None)
    needed = BARE + size * (CHECKED if checked else HELD)
    free = _free_gigabytes()
    short = "" if free is None or needed <= free else f"; {free:.1f} GB are free"
    cure = f", and --no-check takes up to {BARE + size * HELD:.1f} GB" if short and checked else ""
    print(f"memory   up to {needed:.1f} GB for {size:.1f} GB of weights{short}{cure}")


def check_logits(model: OneVision, read: Door, source: Path, write: Door, written: Path, *, exact: bool) -> None:
    """Run the source and the result on probes and refuse a result that differs by more than `TOLERANCE`.

    exact: the weights kept their type; otherwise the model in memory, rounded as what was written, is compared. The
    model in memory is left without weights, so that there is room for the others, one after the other.
    """
    shown = probes(model, clips=(read.clips or not exact) and write.clips)
    own_code = exact and read.runs
    before = [] if own_code else _of_model(model, shown, read if exact else None)
    _empty(model)
    before = before or _of_own_code(model, read, source, shown)
    after = _of_own_code(model, write, written, shown) if write.runs else _as_read(write, written, shown)
    differences = [(one - other).abs().max().item() for one, other in zip(before, after, strict=True)]
    for probe, difference in zip(shown, differences, strict=True):
        _say(probe, difference)
    if not all(difference <= TOLERANCE for difference in differences):
        raise CheckpointError(
            f"the written model's logits differ by {max(differences):.2g} (at most {TOLERANCE:g} is let pass); "
            "nothing was kept."
        )


def _of_model(model: OneVision, shown: Sequence[Probe], door: Door | None) -> list[Tensor]:
    if door is not None:
        _say_no_code(door)
    return _logits(lambda probe, rows: our_logits(model, probe, rows), shown)


def _of_own_code(model: OneVision, door: Door, folder: Path, shown: Sequence[Probe]) -> list[Tensor]:
    """The logits of a checkpoint in its own code, whose weights are gone afterwards."""
    run = door.runner(folder, stored_dtype(folder))
    return _logits(lambda probe, rows: run(model, probe, rows), shown)


def _as_read(door: Door, folder: Path, shown: Sequence[Probe]) -> list[Tensor]:
    _say_no_code(door)
    return _of_model(door.import_(folder, dtype=stored_dtype(folder))[0], shown, None)


def _logits(run: Callable[[Probe, Tensor], Tensor], shown: Sequence[Probe]) -> list[Tensor]:
    with InFloat32():
        return [run(probe, probe.compared()) for probe in shown]


def _empty(model: OneVision) -> None:
    model.to("meta")
    gc.collect()


def _say_no_code(door: Door) -> None:
    print(f"checking the model as we read it; the code of {door.about} is not here to run")


def _say(probe: Probe, difference: float) -> None:
    kinds = Counter(shape.kind for shape in probe.shapes)
    what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items()) or "text"
    print(f"checked  {what}: {len(probe.compared())} rows, largest difference of logits {difference:.1e}")


def _free_gigabytes() -> float | None:
    """Memory that a new program can have, where the system says it."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        return None
