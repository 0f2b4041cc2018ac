"""The least time that physics leaves: needed FLOPs at the rate that large matrix products reach on the run's device."""

from __future__ import annotations

from collections.abc import Sequence

from mmblocks.batch import Batch
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.costs.devices import find_device_rates
from mmblocks.model.costs.flops import FORWARD, ForwardFlops, PassCounts
from mmblocks.model.onevision import OneVision
from tests.bench.suites.run import Run


def compute_floor_s(flops: float, run: Run) -> float | None:
    """Seconds that so many FLOPs take; None where nobody measured the device."""
    rates = find_device_rates(run.device)
    return None if rates is None or rates.reached_flops is None else flops / rates.reached_flops


def count_needed_flops(
    model: OneVision, batch: Batch, output_rows: Sequence[int], passes: PassCounts = FORWARD
) -> float:
    """FLOPs of everything, of which so many rows of each sequence are needed at the end."""
    flops = ForwardFlops.from_dry_build(dry_build(model.spec))
    return flops.count_batch(batch, batch.packing.lengths, output_rows, passes)
