"""Rotary position embedding as transformers' functions compute it, and its transpose."""

import torch
from torch import Tensor


def forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys, turned; in `dtype`."""
    q_turned, k_turned = (x * cos.unsqueeze(1) + _turn_half(x) * sin.unsqueeze(1) for x in (q, k))
    return q_turned.to(dtype), k_turned.to(dtype)


def backward(q_grad: Tensor, k_grad: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys, in `dtype`, from those of what was returned."""
    wide = torch.promote_types(q_grad.dtype, torch.float32)
    cos, sin = cos.unsqueeze(1).to(wide), sin.unsqueeze(1).to(wide)
    q_back, k_back = (x.to(wide) * cos - _turn_half(x.to(wide) * sin) for x in (q_grad, k_grad))
    return q_back.to(dtype), k_back.to(dtype)


def _turn_half(x: Tensor) -> Tensor:
    """The first half of the channels in the second's place, and the second, negative, in the first's."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
