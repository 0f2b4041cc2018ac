"""Root mean square norm of rows (Zhang and Sennrich 2019, arXiv:1910.07467), as language models use it.

The idea of one kernel for it is that of Apex and of Liger (Hsu et al. 2024, arXiv:2410.10989); the kernels are our own.
"""

import torch
from torch import Tensor

from mmblocks.ops.rms_norm.call import STYLES, Style
from mmblocks.ops.rms_norm.library import OP, compute_norm

__all__ = ["OP", "STYLES", "Style", "compute_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, style: Style = "rounded") -> Tensor:
    """x / sqrt(mean of x ** 2 + eps) * weight over the last axis, in float32 inside.

    x: (..., dim); weight: (dim,). Returns (..., dim) in x's type, or in the wider of both where `style` is "rounded".
    Differentiable in both; for backward x itself is kept and a number for each row.
    """
    choose_at_runtime = torch.compiler.is_compiling() or x.is_meta
    backend = "" if choose_at_runtime else OP.choose_backend(x, weight, eps, style).name
    return compute_norm(x, weight, eps, style, backend)
