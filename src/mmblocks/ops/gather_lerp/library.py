"""The backends of the gather, the fast ones as operators of torch.library: a compiler, a tracer and a counter see one op.

A tool that looks at dispatched operators sees `mmblocks::gather_lerp`, and not what is inside; a profiler sees both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
from mmblocks.ops.gather_lerp import bag, reference, with_triton
from mmblocks.ops.gather_lerp.transpose import with_transpose
from mmblocks.ops.triton_backend import list_unavailable_reasons

OP = Op(
    "gather_lerp",
    [
        Backend(
            "triton",
            with_triton.gather_rows,
            with_triton.reasons_against,
            list_unavailable_reasons,
            run_backward=with_triton.gather_gradient,
        ),
        Backend("bag", bag.gather_rows, accept_all_inputs, run_backward=bag.gather_gradient),
        Backend(REFERENCE, reference.gather_rows, accept_all_inputs),
    ],
)


def compute_gather(x: Tensor, table: GatherTable, backend: Backend, *, gelu: bool) -> Tensor:
    """`mmblocks.ops.gather_lerp` by a backend, differentiable in x."""
    if backend.run_backward is None:
        return backend.run(x, table.rows, table.weights, gelu=gelu)
    assert len(x) == table.size, f"terms of {table.size} rows meet {len(x)}"  # kernels would read anything
    transpose = (None, None) if table.transpose is None else (table.transpose.rows, table.transpose.weights)
    return torch.ops.mmblocks.gather_lerp(x, table.rows, table.weights, *transpose, gelu, backend.name)


# By these calls and not by torch.library.custom_op, which imports the compiler, seconds of it, when it is first called.
# The backend is a string here only: operators of torch.library take no objects.
FORWARD, BACKWARD = "mmblocks::gather_lerp", "mmblocks::gather_lerp_backward"
torch.library.define(
    FORWARD,
    "(Tensor x, Tensor rows, Tensor weights, Tensor? back_rows, Tensor? back_weights, bool gelu, str backend) -> Tensor",
)
torch.library.define(
    BACKWARD, "(Tensor gradient, Tensor rows, Tensor weights, Tensor? before_gelu, str backend) -> Tensor"
)


@torch.library.impl(FORWARD, "default")
def run_gather(
    x: Tensor,
    rows: Tensor,
    weights: Tensor,
    back_rows: Tensor | None,
    back_weights: Tensor | None,
    gelu: bool,
    backend: str,
) -> Tensor:
    """(size, d) to (n, d); the transposed table `back_*` is for the gradient only."""
    if not rows.numel() or not x.numel():
        return x.new_zeros(len(rows), x.shape[1])
    chosen = OP.find_backend(backend)
    assert chosen is not None
    return chosen.run(x, rows, weights, gelu=gelu)


@torch.library.impl(BACKWARD, "default")
def run_gather_gradient(
    gradient: Tensor, rows: Tensor, weights: Tensor, before_gelu: Tensor | None, backend: str
) -> Tensor:
    """(n, d) to (size, d), along a transposed table, and through gelu at `before_gelu` where that is given."""
    if not rows.numel() or not gradient.numel():
        return gradient.new_zeros(len(rows), gradient.shape[1])
    chosen = OP.find_backend(backend)
    assert chosen is not None
    assert chosen.run_backward is not None
    return chosen.run_backward(gradient, rows, weights, before_gelu)


@torch.library.register_fake(FORWARD)
@torch.library.register_fake(BACKWARD)
def make_fake_output(x: Tensor, rows: Tensor, *others: object) -> Tensor:
    return x.new_empty(rows.shape[0], x.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows, weights, back_rows, back_weights, gelu, ctx.backend = inputs
    ctx.size, ctx.is_transposed = len(x), back_rows is not None
    table = (back_rows, back_weights) if ctx.is_transposed else (rows, weights)
    ctx.save_for_backward(*table, x if gelu else None)


def _run_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    rows, weights, before_gelu = ctx.saved_tensors
    if not ctx.is_transposed:
        transpose = with_transpose(GatherTable(rows, weights, ctx.size)).transpose
        assert transpose is not None
        rows, weights = transpose.rows, transpose.weights
    return torch.ops.mmblocks.gather_lerp_backward(gradient, rows, weights, before_gelu, ctx.backend), *[None] * 6


torch.library.register_autograd(FORWARD, _run_backward, setup_context=_save_for_backward)
