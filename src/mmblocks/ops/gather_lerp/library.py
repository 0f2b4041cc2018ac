"""The fast ways as operators of torch.library: compiling, tracing without data and counting see one op.

A tool that looks at dispatched operators sees `mmblocks::gather_lerp`, and not what is inside; a profiler sees both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.gather_lerp import bag, with_triton
from mmblocks.ops.gather_lerp.turn import with_transpose

BACKENDS = {"triton": with_triton, "bag": bag}


def make_run(backend: str) -> Callable[..., Tensor]:
    """`run` of a way, differentiable in x."""

    def run(x: Tensor, taps: GatherTable, *, gelu: bool) -> Tensor:
        assert len(x) == taps.size, f"taps of {taps.size} rows meet {len(x)}"  # kernels would read anything
        back = (None, None) if taps.transpose is None else (taps.transpose.rows, taps.transpose.weights)
        return torch.ops.mmblocks.gather_lerp(x, taps.rows, taps.weights, *back, gelu, backend)

    return run


# By these calls and not by torch.library.custom_op, which imports the compiler, seconds of it, when it is first called.
FORWARD, BACKWARD = "mmblocks::gather_lerp", "mmblocks::gather_lerp_backward"
torch.library.define(
    FORWARD,
    "(Tensor x, Tensor rows, Tensor weights, Tensor? back_rows, Tensor? back_weights, bool gelu, str way) -> Tensor",
)
torch.library.define(BACKWARD, "(Tensor gradient, Tensor rows, Tensor weights, Tensor? before_gelu, str way) -> Tensor")


@torch.library.impl(FORWARD, "default")
def _run_gather(
    x: Tensor, rows: Tensor, weights: Tensor, back_rows: Any, back_weights: Any, gelu: bool, backend: str
) -> Tensor:
    """(size, d) to (n, d); `back_*` are for the gradient only."""
    if not rows.numel() or not x.numel():
        return x.new_zeros(len(rows), x.shape[1])
    return BACKENDS[backend].gather_rows(x, rows, weights, gelu=gelu)


@torch.library.impl(BACKWARD, "default")
def _run_gather_gradient(
    gradient: Tensor, rows: Tensor, weights: Tensor, before_gelu: Tensor | None, backend: str
) -> Tensor:
    """(n, d) to (size, d), along taps turned round, and through gelu at `before_gelu` where that is given."""
    if not rows.numel() or not gradient.numel():
        return gradient.new_zeros(len(rows), gradient.shape[1])
    return BACKENDS[backend].gather_gradient(gradient, rows, weights, before_gelu)


@torch.library.register_fake(FORWARD)
@torch.library.register_fake(BACKWARD)
def _make_fake_output(x: Tensor, rows: Tensor, *others: Any) -> Tensor:
    return x.new_empty(rows.shape[0], x.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows, weights, back_rows, back_weights, gelu, ctx.way = inputs
    ctx.size, ctx.is_turned = len(x), back_rows is not None
    table = (back_rows, back_weights) if ctx.is_turned else (rows, weights)
    ctx.save_for_backward(*table, x if gelu else None)


def _run_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    rows, weights, before_gelu = ctx.saved_tensors
    if not ctx.is_turned:
        back = with_transpose(GatherTable(rows, weights, ctx.size)).transpose
        assert back is not None
        rows, weights = back.rows, back.weights
    return torch.ops.mmblocks.gather_lerp_backward(gradient, rows, weights, before_gelu, ctx.way), *[None] * 6


torch.library.register_autograd(FORWARD, _run_backward, setup_context=_save_for_backward)
