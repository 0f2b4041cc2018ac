"""The loss in chunks against the loss at once, value and gradients of rows and head."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmblocks.ops.choice import Backend
from mmblocks.ops.linear_cross_entropy import OP, chunked
from mmblocks.ops.selftest import BackendResult, compare_backends, compute_value_and_gradients

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
    """A result for each backend, case and dtype."""
    for name, (rows, dim, vocabulary) in CASES.items():
        # Hidden states, targets and a head, in numbers that bfloat16 holds exactly.
        generator = torch.Generator().manual_seed(rows)
        hidden = torch.randn(rows, dim, generator=generator).bfloat16().to(device)
        head = (torch.randn(vocabulary, dim, generator=generator) * dim**-0.5).bfloat16().to(device)
        targets = torch.randint(vocabulary, (rows,), generator=generator).to(device)

        for dtype, tolerance in TOLERANCES.items():

            def compute(backend: Backend, dtype: torch.dtype = dtype) -> list[Tensor]:
                run = partial(backend.run, most=MOST) if backend.run is chunked.compute_losses else backend.run

                def compute_losses(hidden: Tensor, head: Tensor) -> Tensor:
                    return run(hidden, targets, lambda rows: F.linear(rows, head), vocabulary=len(head))  # noqa: B023

                return compute_value_and_gradients(compute_losses, [hidden.to(dtype), head.to(dtype)])  # noqa: B023

            want = compute(OP.reference, torch.float64)
            yield from compare_backends(OP, name, (), compute, want, dtype, tolerance)
