"""Rotary position embedding of queries and keys (Su et al. 2021, arXiv:2104.09864), by halves as in GPT-NeoX and Llama."""

import torch
from torch import Tensor

from mmblocks.ops.rotary.library import OP, compute_rotary

__all__ = ["OP", "compute_rotary", "rotate"]


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Queries and keys, turned by their positions' angles: x * cos + (-second half of x, first half) * sin.

    q, k: (sequences, heads, tokens, head_dim), each with its number of heads; cos, sin: (sequences or 1, tokens, head_dim).
    Returns them in `dtype`, by default that of the products. Differentiable in q and k, of which nothing is kept.
    """
    dtype = torch.promote_types(q.dtype, cos.dtype) if dtype is None else dtype
    choose_at_runtime = torch.compiler.is_compiling() or q.is_meta
    backend = "" if choose_at_runtime else OP.choose_backend(q, k, cos, sin, dtype).name
    return compute_rotary(q, k, cos, sin, dtype, backend)
