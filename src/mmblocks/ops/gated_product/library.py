"""The gate as one operator of torch.library, so that a compiler, a tracer and a CUDA graph see one op.

For backward it keeps gate and up. `recompute_product` has the linear layer that follows keep nothing more: the product
is computed again when that layer's backward pass asks for it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmblocks.ops.choice import Op
from mmblocks.ops.gated_product import reference, with_triton
from mmblocks.ops.gated_product.reference import Activation
from mmblocks.ops.triton_backend import list_backends

OP = Op("gated_product", list_backends(with_triton, reference))


def compute_product(gate: Tensor, up: Tensor, activation: Activation, backend: str) -> Tensor:
    """`mmblocks.ops.gated_product.multiply_gated` by the backend of a name; "" chooses one when the op runs."""
    run = torch.ops.mmblocks.gated_product.default if torch.compiler.is_compiling() else run_differentiably
    return run(gate, up, activation, backend)


# By these calls and not by torch.library.custom_op, which imports the compiler, seconds of it. The backend is a string in
# these operators only: they take no objects.
FORWARD, BACKWARD = "mmblocks::gated_product", "mmblocks::gated_product_backward"
torch.library.define(FORWARD, "(Tensor gate, Tensor up, str activation, str backend) -> Tensor")
torch.library.define(BACKWARD, "(Tensor grad, Tensor gate, Tensor up, str activation, str backend) -> (Tensor, Tensor)")


@torch.library.impl(FORWARD, "default")
def run_product(gate: Tensor, up: Tensor, activation: Activation, backend: str) -> Tensor:
    """Two tensors of a shape and type to one of these."""
    if not gate.numel():
        return gate.new_empty(gate.shape)
    chosen = OP.find_backend(backend) or OP.choose_backend(gate, up, activation)
    return chosen.run(gate, up, activation).contiguous()  # laid out as a compiler was told


@torch.library.impl(BACKWARD, "default")
def run_product_backward(
    grad: Tensor, gate: Tensor, up: Tensor, activation: Activation, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    if not gate.numel():
        return make_fake_gradients(grad, gate, up)
    run_backward = (OP.find_backend(backend) or OP.choose_backend(gate, up, activation)).run_backward
    assert run_backward is not None
    return run_backward(grad, gate, up, activation)


@torch.library.register_fake(FORWARD)
def make_fake_output(gate: Tensor, *_: object) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.register_fake(BACKWARD)
def make_fake_gradients(grad: Tensor, gate: Tensor, up: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


class _DifferentiableProduct(torch.autograd.Function):
    """Forward and backward operator as one node of autograd, whose `inputs` are gate and up if they were fetched before."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation, backend: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.settings, ctx.inputs = (activation, backend), None
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mmblocks.gated_product.default(gate, up, activation, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up = ctx.saved_tensors if ctx.inputs is None else ctx.inputs
        ctx.inputs = None
        found = torch.ops.mmblocks.gated_product_backward.default(gradients[0], gate, up, *ctx.settings)
        return *found, None, None


def run_differentiably(gate: Tensor, up: Tensor, activation: Activation, backend: str) -> Tensor:
    """The forward operator, as a node of autograd where a gradient may follow."""
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return cast(Tensor, _DifferentiableProduct.apply(gate, up, activation, backend))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmblocks.gated_product.default(gate, up, activation, backend)


torch.library.impl(FORWARD, "Autograd", run_differentiably)


# Without the product -------------------------------------------------------------------------------------------------


def recompute_product(product: Tensor) -> AbstractContextManager[object]:
    """Inside, what autograd would keep of a product of `compute_product` is left away, and computed again in backward.

    For the one layer that reads the product, and that keeps nothing else but weights: whatever it keeps is hidden from
    hooks around this, such as those of gradient checkpointing. The product's own node is asked for gate and up, so that
    these hooks see both once. A compiler decides by itself what it keeps.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    node = product.grad_fn
    if not isinstance(node, cast(Any, _DifferentiableProduct)._backward_cls):
        return nullcontext()
    storage = product.untyped_storage()._cdata

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        if tensor.untyped_storage()._cdata != storage:
            return tensor
        shape, stride = tensor.shape, tensor.stride()
        return lambda: _compute_again(node).as_strided(shape, stride)

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _compute_again(node: Any) -> Tensor:
    if node.inputs is None:  # gradient checkpointing lets saved tensors be fetched once
        node.inputs = node.saved_tensors
    with torch.no_grad():
        return torch.ops.mmblocks.gated_product.default(*node.inputs, *node.settings)
