"""What the device itself reaches: copies and matrix products at the shapes of the released models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmblocks.model.costs.devices import find_device_rates
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.timing import time_in_turns

NAME = "ceil"
PRODUCTS = {
    "square": (8192, 8192, 8192),
    "tower fc1, 32 tiles": (23328, 1152, 4304),
    "0.5B gate and up, 6.3k rows": (6337, 896, 9728),
    "7B gate and up, 6.3k rows": (6337, 3584, 37888),
}
"""Rows, inputs and outputs of a linear layer."""


def measure(run: Run) -> Iterator[Row]:
    """Shares are of the rates that the cost module has for the device."""
    run.require_time(10, "copy")
    rate = measure_copy_rate(run)
    device = find_device_rates(run.device)
    ceilings = (None, None) if device is None else (device.reached_bytes, device.reached_flops)
    copy_share, product_ceiling = None if ceilings[0] is None else rate / ceilings[0], ceilings[1]
    yield run.row(NAME, "copy", "read and written", "B/s", rate, floor_share=copy_share)
    for name, shape in PRODUCTS.items():
        run.require_time(10, name)
        rate = measure_product_rate(run, *(side if run.on_gpu else max(1, side // 32) for side in shape))
        share = None if product_ceiling is None else rate / product_ceiling
        yield run.row(NAME, name, "matmul", "FLOP/s", rate, floor_share=share)


def measure_copy_rate(run: Run) -> float:
    """Bytes a second, read and written, of copying much more than caches hold."""
    count = 2**30 if run.on_gpu else 2**20 if run.tiny else 2**26
    x = torch.zeros(count, dtype=torch.uint8, device=run.device)
    y = torch.empty_like(x)
    return 2 * count / time_in_turns({"copy": lambda _: y.copy_(x)}, run)["copy"].median


def measure_product_rate(run: Run, rows: int, inputs: int, outputs: int) -> float:
    """FLOPs a second of one matrix product."""
    x, w = (torch.randn(shape, device=run.device).to(run.dtype) for shape in ((rows, inputs), (inputs, outputs)))
    return 2 * rows * inputs * outputs / time_in_turns({"product": lambda _: x @ w}, run)["product"].median
