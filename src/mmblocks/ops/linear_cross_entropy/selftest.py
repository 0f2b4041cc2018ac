"""The loss in chunks against the loss at once, value and gradients of rows and head, on the device that is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmblocks.ops.linear_cross_entropy import OP, chunked, reference
from mmblocks.ops.selftest import BackendResult, measure_difference

TOLERANCES = {
    torch.float32: 1e-5,  # sums over chunks and vocabulary in another order
    torch.bfloat16: 2**-6,  # logits are rounded to 8 bits, and so are the head's gradients of every chunk
}
MOST = 20_000
"""Logits at a time, so that few rows are several chunks."""
CASES = {  # name: (rows, dim, vocabulary)
    "one chunk": (20, 64, 1_000),
    "several chunks": (61, 64, 1_000),
    "no rows": (0, 64, 1_000),
}


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each way, case and type."""
    for name, sizes in CASES.items():
        for dtype, tolerance in TOLERANCES.items():
            hidden, targets, head = (x.to(device) for x in _inputs(*sizes))
            want = _compute_value_and_gradients(reference.run, hidden, targets, head, torch.float64)
            for backend in OP.backends:
                run = (
                    partial(backend.run, most=MOST)
                    if name == "several chunks" and backend.run is chunked.run
                    else backend.run
                )
                got = _compute_value_and_gradients(run, hidden, targets, head, dtype)
                error = max(measure_difference(g, w) for g, w in zip(got, want, strict=True))
                yield BackendResult(
                    OP.name, backend.name, f"{name}, {str(dtype).removeprefix('torch.')}", error, tolerance
                )


def _inputs(rows: int, dim: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets and a head, in numbers that bfloat16 holds exactly."""
    drawn = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, dim, generator=drawn).bfloat16()
    head = (torch.randn(vocabulary, dim, generator=drawn) * dim**-0.5).bfloat16()
    return hidden, torch.randint(vocabulary, (rows,), generator=drawn), head


def _compute_value_and_gradients(
    run: Callable[..., Tensor], hidden: Tensor, targets: Tensor, head: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    hidden, head = (x.to(dtype).requires_grad_() for x in (hidden, head))
    with torch.enable_grad():
        losses = run(hidden, targets, lambda rows: F.linear(rows, head), vocabulary=len(head))
        return (losses.detach(), *torch.autograd.grad(losses.sum(), (hidden, head)))
