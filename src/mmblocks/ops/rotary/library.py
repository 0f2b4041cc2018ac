"""Rotary position embedding as one operator of torch.library, so that a compiler, a tracer and a CUDA graph see one op.

For backward it keeps cos and sin, which all layers share.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmblocks.ops.choice import Op
from mmblocks.ops.rotary import reference, with_triton
from mmblocks.ops.triton_backend import list_backends

OP = Op("rotary", list_backends(with_triton, reference))


def compute_rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """`mmblocks.ops.rotary.rotate` by the backend of a name; "" chooses one when the op runs."""
    run = torch.ops.mmblocks.rotary.default if torch.compiler.is_compiling() else run_differentiably
    return run(q, k, cos, sin, dtype, backend)


# By these calls and not by torch.library.custom_op, which imports the compiler, seconds of it. The backend is a string in
# these operators only: they take no objects.
FORWARD, BACKWARD = "mmblocks::rotary", "mmblocks::rotary_backward"
SETTINGS = "Tensor cos, Tensor sin, ScalarType dtype, str backend"
torch.library.define(FORWARD, f"(Tensor q, Tensor k, {SETTINGS}) -> (Tensor, Tensor)")
torch.library.define(BACKWARD, f"(Tensor q_grad, Tensor k_grad, {SETTINGS}) -> (Tensor, Tensor)")


@torch.library.impl(FORWARD, "default")
def run_rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """(sequences, heads, tokens, head_dim) to the same."""
    chosen = OP.find_backend(backend) or OP.choose_backend(q, k, cos, sin, dtype)
    return chosen.run(q, k, cos, sin, dtype)


@torch.library.impl(BACKWARD, "default")
def run_rotary_backward(
    q_grad: Tensor, k_grad: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys in their type."""
    chosen = OP.find_backend(backend) or OP.choose_backend(q_grad, k_grad, cos, sin, dtype)
    assert chosen.run_backward is not None
    return chosen.run_backward(q_grad, k_grad, cos, sin, dtype)


@torch.library.register_fake(FORWARD)
@torch.library.register_fake(BACKWARD)
def make_fake_output(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, dtype=dtype), torch.empty_like(k, dtype=dtype)


class _DifferentiableRotary(torch.autograd.Function):
    """Forward and backward operator as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtype, (_, ctx.backend) = q.dtype, settings
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mmblocks.rotary.default(q, k, cos, sin, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        found = torch.ops.mmblocks.rotary_backward.default(*gradients, *ctx.saved_tensors, ctx.dtype, ctx.backend)
        return *found, None, None, None, None


def run_differentiably(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """The forward operator, as a node of autograd where a gradient may follow."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return cast(tuple[Tensor, Tensor], _DifferentiableRotary.apply(q, k, cos, sin, dtype, backend))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmblocks.rotary.default(q, k, cos, sin, dtype, backend)


torch.library.impl(FORWARD, "Autograd", run_differentiably)
