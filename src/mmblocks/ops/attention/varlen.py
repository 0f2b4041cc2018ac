"""Packed attention by the FlashAttention-2 that torch brings: fewer heads of keys than of queries both ways."""

from __future__ import annotations

import torch
from torch import Tensor

from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.machine import read_compute_capability, reasons_against_flash

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Against the reference in float32, relative to its largest number: a few roundings of the type, more in gradients."""
MAX_HEAD_DIM = 256
aten = torch.ops.aten


def reasons_against(call: PackedCall) -> list[str]:
    """Why the kernel cannot take a call."""
    return reasons_against_flash_inputs(call) + ([] if call.q.device.type != "cuda" else reasons_against_flash())


def reasons_against_flash_inputs(call: PackedCall) -> list[str]:
    """What FlashAttention-2 asks of its inputs, whoever calls it."""
    dim, device = call.q.shape[-1], call.q.device.type
    reasons = reasons_against_features(call)
    if device != "cuda":
        reasons.append(f"it is for CUDA, and the tensors are on {device}")
    if call.q.dtype not in TOLERANCE:
        reasons.append(f"it takes float16 and bfloat16, not {_name(call.q.dtype)}")
    if dim % 8 or dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim={dim} is no multiple of 8 up to {MAX_HEAD_DIM}")
    if call.learns and dim > 192 and device == "cuda" and read_compute_capability() not in ((8, 0), (9, 0), None):
        reasons.append(f"its backward takes head_dim={dim} on compute capability 8.0 and 9.0 only")
    return reasons


def reasons_against_features(call: PackedCall) -> list[str]:
    """What no fused kernel here knows."""
    reasons = []
    if call.capped:
        reasons.append("it has no softcap")
    if call.sinks:
        reasons.append("it has no sinks")
    if call.q.shape[-1] != call.v.shape[-1]:
        reasons.append(f"values are {call.v.shape[-1]} wide and keys {call.q.shape[-1]}; it takes equal widths")
    if len({call.q.dtype, call.k.dtype, call.v.dtype}) > 1:
        reasons.append("queries, keys and values differ in type")
    return reasons


def forward(call: PackedCall) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    left, right = _compute_window_sizes(call)
    out, lse, *_ = aten._flash_attention_forward(
        *map(make_channels_contiguous, (call.q, call.k, call.v)),
        call.ends_q,
        call.ends_k,
        call.max_q,
        call.max_k,
        0.0,
        call.causal,
        False,
        scale=call.scale,
        window_size_left=left,
        window_size_right=right,
    )
    return out.contiguous(), lse.contiguous()


def backward(call: PackedCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    left, right = _compute_window_sizes(call)
    state = torch.empty(2, dtype=torch.uint64, device=grad.device)  # of a random generator; there is no dropout
    dq, dk, dv = aten._flash_attention_backward(
        *map(make_channels_contiguous, (grad, call.q, call.k, call.v)),
        out,
        lse,
        call.ends_q,
        call.ends_k,
        call.max_q,
        call.max_k,
        0.0,
        call.causal,
        state,
        torch.empty(0, device=grad.device),
        scale=call.scale,
        window_size_left=left,
        window_size_right=right,
    )
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def make_channels_contiguous(x: Tensor) -> Tensor:
    """The kernels want the channels of a head side by side, and may be given heads that are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _compute_window_sizes(call: PackedCall) -> tuple[int, int]:
    """How far a token sees to the left and to the right; -1 is as far as `causal` allows.

    To the right it is never said to be 0: the kernel would not put the heads of a group side by side for single queries.
    """
    return -1 if call.window_left is None else call.window_left, -1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
