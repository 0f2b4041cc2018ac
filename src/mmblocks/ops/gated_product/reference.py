"""The gate as transformers' modules compute it, and its gradients by the formulas."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh"]
"""SwiGLU, GeGLU and GeGLU by the approximation with tanh."""
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def forward(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate), rounded to its type, times up."""
    return _activate(gate, activation) * up


def backward(grad: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    wide = torch.promote_types(gate.dtype, torch.float32)
    x, pulled = gate.to(wide), grad.to(wide)
    through = pulled * up.to(wide)
    if activation == "silu":
        gate_grad = torch.ops.aten.silu_backward(through, x)
    else:
        gate_grad = torch.ops.aten.gelu_backward(through, x, approximate=_find_approximation(activation))
    return gate_grad.to(gate.dtype), (pulled * _activate(x, activation)).to(up.dtype)


def _activate(gate: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate=_find_approximation(activation))


def _find_approximation(activation: Activation) -> str:
    return "tanh" if activation == "gelu_tanh" else "none"
