"""Packed attention by the FlashAttention-2 that torch brings; grouped heads in forward and backward."""

from functools import cache

import torch
from torch import Tensor

from mmblocks.ops.attention.call import (
    PackedCall,
    read_compute_capability,
    reasons_against_ampere_kernel,
    reasons_against_features,
)
from mmblocks.reprs import format_dtype

TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Against the reference in float32, relative to its largest number: a few roundings of the dtype, more in gradients."""
MAX_HEAD_DIM = 256
aten = torch.ops.aten


def reasons_against(call: PackedCall) -> list[str]:
    """Why the kernel cannot take a call."""
    return reasons_against_flash_inputs(call) + (list_unavailable_reasons() if call.q.is_cuda else [])


@cache
def list_unavailable_reasons() -> list[str]:
    """Why torch's own FlashAttention cannot run on this machine."""
    if reasons := reasons_against_ampere_kernel():
        return reasons
    if not torch.backends.cuda.is_flash_attention_available():
        return [f"torch {torch.__version__} was built without FlashAttention"]
    return []


def reasons_against_flash_inputs(call: PackedCall) -> list[str]:
    """What FlashAttention-2 requires of its inputs, whoever calls it."""
    dim, reasons = call.q.shape[-1], reasons_against_features(call)
    if not call.q.is_cuda:
        return [*reasons, f"it is for CUDA, and the tensors are on {call.q.device.type}"]
    if call.q.dtype not in TOLERANCES:
        reasons.append(f"it takes float16 and bfloat16, not {format_dtype(call.q.dtype)}")
    if dim % 8 or dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim={dim} is no multiple of 8 up to {MAX_HEAD_DIM}")
    if call.learns and dim > 192 and read_compute_capability() not in ((8, 0), (9, 0), None):
        reasons.append(f"its backward takes head_dim={dim} on compute capability 8.0 and 9.0 only")
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


def attend_shortened(call: PackedCall, lengths: Tensor) -> Tensor:
    """(tokens, heads, value_dim): the queries of each sequence to its first `lengths` (sequences,) int32 keys.

    The last query sees all of these keys. Lengths are in a tensor, so the host does not wait for the device, and the kernel
    reads no other keys. Single queries with grouped heads are divided among processors.
    """
    left, right = _compute_window_sizes(call)
    out, *_ = aten._flash_attention_forward(
        *map(make_channels_contiguous, (call.q, call.k, call.v)),
        call.ends_q,
        call.ends_k,
        call.max_q,
        call.max_k,
        0.0,
        call.causal and call.max_q > 1,
        False,
        scale=call.scale,
        window_size_left=left,
        window_size_right=right,
        seqused_k=lengths,
    )
    return out


def make_channels_contiguous(x: Tensor) -> Tensor:
    """The kernels need contiguous channels; heads and tokens may have any stride."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _compute_window_sizes(call: PackedCall) -> tuple[int, int]:
    """How far a token sees to the left and to the right; -1 is as far as `causal` allows.

    To the right it is never 0: the kernel would then not group heads for single queries.
    """
    return -1 if call.window_left is None else call.window_left, -1
