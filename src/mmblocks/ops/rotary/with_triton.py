"""Rotary position embedding by a Triton kernel. `kernels` is imported when it is launched."""

import torch
from torch import Tensor

from mmblocks.ops.triton_backend import find_reasons_by_trial, launch_kernel, list_reasons_against_tensors

BLOCK_ELEMENTS = 1024
"""Channels of one half that a program takes, of several heads."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # as torch rounds, which multiplies and adds apart


def reasons_against(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> list[str]:
    """Why the kernel cannot run for these queries and keys."""
    reasons = list_reasons_against_tensors(q=q, k=k, cos=cos, sin=sin)
    if q.dtype != k.dtype or cos.dtype != sin.dtype or cos.dtype not in (q.dtype, torch.float32):
        reasons.append("its kernel takes queries and keys of one type, and cos and sin of the same or in float32")
    return reasons or find_reasons_by_trial(_run_small_case, q.device, q.dtype)


def _run_small_case(device: torch.device, dtype: torch.dtype) -> Tensor:
    x = torch.ones(1, 1, 2, 8, device=device, dtype=dtype)
    return forward(x, x, x[0], x[0], dtype)[0]


def forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys, turned; in `dtype`, and laid out as they were."""
    return _turn_heads(q, cos, sin, dtype, back=False), _turn_heads(k, cos, sin, dtype, back=False)


def backward(q_grad: Tensor, k_grad: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys, in `dtype`, from those of what was returned."""
    return _turn_heads(q_grad, cos, sin, dtype, back=True), _turn_heads(k_grad, cos, sin, dtype, back=True)


def _turn_heads(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, *, back: bool) -> Tensor:
    from mmblocks.ops.rotary import kernels

    x, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, cos, sin))
    out = torch.empty_like(x, dtype=dtype)
    if not x.numel():
        return out
    sequences, heads, tokens, head_dim = x.shape
    cos, sin = (table.expand(sequences, -1, -1) for table in (cos, sin))
    half = head_dim // 2
    channels = 1 << (half - 1).bit_length()
    block = min(max(BLOCK_ELEMENTS // channels, 1), 1 << (heads - 1).bit_length())
    strides = *x.stride()[:3], *out.stride()[:3], *cos.stride()[:2], *sin.stride()[:2]
    launch_kernel(
        kernels.turn_heads, (sequences * tokens, -(-heads // block)), out,
        x, cos, sin, out, heads, tokens, half, *strides, BACK=back, HEADS=block, HALF=channels, **OPTIONS,
    )  # fmt: skip
    return out
