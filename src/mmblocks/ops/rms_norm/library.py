"""The norm as one operator of torch.library, so that a compiler, a tracer and a CUDA graph see one op.

For backward it keeps x in its own type and one float32 for each row; transformers' modules keep x in float32 and, where
they round before they multiply, the normalised rows too.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmblocks.ops.choice import Op
from mmblocks.ops.rms_norm import reference, with_triton
from mmblocks.ops.rms_norm.call import Style, find_output_dtype
from mmblocks.ops.triton_backend import list_backends

OP = Op("rms_norm", list_backends(with_triton, reference))


def compute_norm(x: Tensor, weight: Tensor, eps: float, style: Style, backend: str) -> Tensor:
    """`mmblocks.ops.rms_norm.rms_norm` by the backend of a name; "" chooses one when the op runs."""
    run = torch.ops.mmblocks.rms_norm.default if torch.compiler.is_compiling() else run_differentiably
    return run(x, weight, eps, style, backend)[0]


# By these calls and not by torch.library.custom_op, which imports the compiler, seconds of it. The backend is a string in
# these operators only: they take no objects.
FORWARD, BACKWARD = "mmblocks::rms_norm", "mmblocks::rms_norm_backward"
torch.library.define(FORWARD, "(Tensor x, Tensor weight, float eps, str style, str backend) -> (Tensor, Tensor)")
torch.library.define(
    BACKWARD,
    "(Tensor grad, Tensor x, Tensor weight, Tensor rstd, float eps, str style, bool learns, str backend) -> (Tensor, Tensor)",
)


@torch.library.impl(FORWARD, "default")
def run_norm(x: Tensor, weight: Tensor, eps: float, style: Style, backend: str) -> tuple[Tensor, Tensor]:
    """(..., dim) to (..., dim) and, for backward, (rows,)."""
    if not x.numel():
        return make_fake_output(x, weight, eps, style, backend)
    out, rstd = (OP.find_backend(backend) or OP.choose_backend(x, weight, eps, style)).run(x, weight, eps, style)
    return out.contiguous(), rstd  # laid out as a compiler was told


@torch.library.impl(BACKWARD, "default")
def run_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float, style: Style, learns: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; that of a weight that does not learn may be anything."""
    if not x.numel():
        return x.new_empty(x.shape), weight.new_zeros(weight.shape)
    run_backward = (OP.find_backend(backend) or OP.choose_backend(x, weight, eps, style)).run_backward
    assert run_backward is not None
    return run_backward(grad, x, weight, rstd, style, learns)


@torch.library.register_fake(FORWARD)
def make_fake_output(x: Tensor, weight: Tensor, eps: float, style: Style, backend: str) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    out = x.new_empty(x.shape, dtype=find_output_dtype(x, weight, style))
    return out, x.new_empty(rows, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.register_fake(BACKWARD)
def make_fake_gradients(grad: Tensor, x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


class _DifferentiableNorm(torch.autograd.Function):
    """Forward and backward operator as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, style: Style, backend: str) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, rstd = torch.ops.mmblocks.rms_norm.default(x, weight, eps, style, backend)
        ctx.mark_non_differentiable(rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, rstd)
        ctx.settings = eps, style, weight.requires_grad, backend
        return out, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad, _ = gradients
        if grad is None:
            return (None,) * 5
        x_grad, weight_grad = torch.ops.mmblocks.rms_norm_backward.default(grad, *ctx.saved_tensors, *ctx.settings)
        *_, learns, _ = ctx.settings
        return x_grad, weight_grad if learns else None, None, None, None


def run_differentiably(x: Tensor, weight: Tensor, eps: float, style: Style, backend: str) -> tuple[Tensor, Tensor]:
    """The forward operator, as a node of autograd where a gradient may follow."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return cast(tuple[Tensor, Tensor], _DifferentiableNorm.apply(x, weight, eps, style, backend))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmblocks.rms_norm.default(x, weight, eps, style, backend)


torch.library.impl(FORWARD, "Autograd", run_differentiably)
