"""The norm as transformers' modules compute it, and its gradients by the formula; float32 inside, whatever the type."""

import torch
from torch import Tensor

from mmblocks.ops.rms_norm.call import Style, find_output_dtype


def forward(x: Tensor, weight: Tensor, eps: float, style: Style) -> tuple[Tensor, Tensor]:
    """(..., dim) to the normalised rows (..., dim) and the reciprocal root mean square of each (rows,)."""
    wide = x.to(_find_sum_dtype(x))
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return _apply_weight(wide * rstd, x, weight, style), rstd.flatten()


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, style: Style, learns: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    sum_dtype = _find_sum_dtype(x)
    rstd = rstd.view(*x.shape[:-1], 1)
    normalised = x.to(sum_dtype) * rstd
    scaled = grad.to(sum_dtype) * _find_factor(weight, style, sum_dtype)
    x_grad = rstd * (scaled - normalised * (scaled * normalised).mean(-1, keepdim=True))
    seen = normalised.to(x.dtype).to(sum_dtype) if style == "rounded" else normalised
    weight_grad = (grad.to(sum_dtype) * seen).flatten(0, -2).sum(0)
    return x_grad.to(x.dtype), weight_grad.to(weight.dtype)


def _apply_weight(normalised: Tensor, x: Tensor, weight: Tensor, style: Style) -> Tensor:
    if style == "rounded":
        return weight * normalised.to(x.dtype)
    if style == "wide":
        return (weight * normalised).to(find_output_dtype(x, weight, style))
    return (normalised * _find_factor(weight, style, normalised.dtype)).to(x.dtype)


def _find_factor(weight: Tensor, style: Style, dtype: torch.dtype) -> Tensor:
    """What normalised rows are multiplied by."""
    return 1.0 + weight.to(dtype) if style == "one_plus" else weight.to(dtype)


def _find_sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
