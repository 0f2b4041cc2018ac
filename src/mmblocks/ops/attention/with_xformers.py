"""Packed attention by xformers' memory-efficient attention, with its block-diagonal masks.

FlashAttention-2 for half precision, CUTLASS for float32 and for older devices. The masks are made of the packing's own
tensor: of the Python lists that they also carry only checks are made, which nothing here needs, and which would have
the host wait for the device. Written against xformers 0.0.35.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmblocks.ops.attention.call import Call
from mmblocks.ops.attention.machine import capability, fmha, reasons_against_xformers
from mmblocks.ops.attention.varlen import against_features, against_flash

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}
"""As of varlen; CUTLASS multiplies float32 in TF32, with 10 bits behind the point."""
PADDED_TO = 32
"""CUTLASS rounds each sequence's logarithms up to so many."""


def reasons_against(call: Call) -> list[str]:
    """Empty when FlashAttention-2 or CUTLASS takes it; otherwise what speaks against each."""
    if call.q.device.type != "cuda":
        return [f"it is for CUDA, and the tensors are on {call.q.device.type}", *against_features(call)]
    if reasons := [*reasons_against_xformers(), *_against_determinism(call)]:
        return reasons
    flash, cutlass = _against_flash(call), _against_cutlass(call)
    return [f"{'; '.join(flash)} (FlashAttention-2)", f"{'; '.join(cutlass)} (CUTLASS)"] if flash and cutlass else []


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    flash = not _against_flash(call)
    q, k, v = (x.unsqueeze(0) for x in (_in_groups(call) if flash else _expanded(call)))
    operator = fmha().flash.FwOp if flash else fmha().cutlass.FwOp
    out, lse = fmha().memory_efficient_attention_forward_requires_grad(
        q, k, v, _mask(call), scale=call.scale, op=operator
    )
    lse = lse.reshape(call.q.shape[1], -1) if flash else _packed(lse, call)
    return out.reshape(*call.q.shape[:2], -1).contiguous(), lse.contiguous()


def backward(call: Call, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    flash = not _against_flash(call)
    operator = fmha().flash.BwOp if flash else fmha().cutlass.BwOp
    q, k, v = (x.unsqueeze(0) for x in _expanded(call))
    lse = lse.unsqueeze(0) if flash else _padded(lse, call)
    dq, dk, dv = fmha().memory_efficient_attention_backward(
        grad.contiguous().unsqueeze(0), out.unsqueeze(0), lse, q, k, v, _mask(call), scale=call.scale, op=operator
    )
    return dq.squeeze(0).contiguous(), _summed(dk, call), _summed(dv, call)


# What may be asked --------------------------------------------------------------------------------------------------


def _against_determinism(call: Call) -> list[str]:
    if call.learns and torch.are_deterministic_algorithms_enabled():
        return ["deterministic algorithms are asked for, and the sums of its backward have no fixed order"]
    return []


def _against_flash(call: Call) -> list[str]:
    old = capability()
    early = old is not None and old < (8, 0)
    return against_flash(call) + (["it needs compute capability 8.0"] if early else [])


def _against_cutlass(call: Call) -> list[str]:
    reasons = against_features(call)
    aligned = 4 if call.q.dtype == torch.float32 else 8
    if call.q.dtype not in TOLERANCE:
        reasons.append(f"it takes float16, bfloat16 and float32, not {str(call.q.dtype).removeprefix('torch.')}")
    if call.q.shape[-1] % aligned:
        reasons.append(f"head_dim={call.q.shape[-1]} is no multiple of {aligned}")
    if call.behind is not None and call.learns:
        reasons.append("its backward knows no window")
    if (here := capability()) is not None and not (7, 5) <= here <= (9, 0):
        reasons.append(f"it is for compute capability 7.5 to 9.0, and this is {here[0]}.{here[1]}")
    return reasons


# Masks --------------------------------------------------------------------------------------------------------------


def _mask(call: Call) -> Any:
    """Block-diagonal; causal ones put the last query of a sequence at its last key."""
    masks = fmha().attn_bias
    mask = masks.BlockDiagonalMask(_sequences(call.ends_q, call.max_q), _sequences(call.ends_k, call.max_k))
    if not call.causal:
        return mask
    if call.behind is None:
        return mask.make_causal_from_bottomright()
    return mask.make_local_attention_from_bottomright(call.behind + 1)


def _sequences(ends: Tensor, longest: int) -> Any:
    return fmha().attn_bias._SeqLenInfo(seqstart=ends, max_seqlen=longest, min_seqlen=-1, seqstart_py=[])


# Heads --------------------------------------------------------------------------------------------------------------


def _in_groups(call: Call) -> list[Tensor]:
    """(tokens, kv_heads, groups, d): keys are shown to the heads of a group without being copied."""
    if call.groups == 1:
        return [_aligned(x) for x in (call.q, call.k, call.v)]
    q = _aligned(call.q).unflatten(1, (-1, call.groups))
    return [q, *(_aligned(x).unsqueeze(2).expand(-1, -1, call.groups, -1) for x in (call.k, call.v))]


def _expanded(call: Call) -> list[Tensor]:
    """(tokens, heads, d): keys copied for each head of a group, as backward and CUTLASS need it."""
    keys = (call.k, call.v) if call.groups == 1 else (x.repeat_interleave(call.groups, 1) for x in (call.k, call.v))
    return [_aligned(x) for x in (call.q, *keys)]


def _aligned(x: Tensor) -> Tensor:
    """Heads that begin at multiples of 8 numbers and lie channel by channel."""
    return x if x.stride(-1) == 1 and not x.stride(-2) % 8 else x.contiguous()


def _summed(grad: Tensor, call: Call) -> Tensor:
    """(1, tokens, heads, d) to (tokens, kv_heads, d)."""
    grad = grad.squeeze(0)
    return (grad if call.groups == 1 else grad.unflatten(1, (-1, call.groups)).sum(2)).contiguous()


# CUTLASS' logarithms: (sequences, heads, longest), where all else here is (heads, tokens) ---------------------------


def _places(call: Call) -> tuple[Tensor, Tensor]:
    """For each token the number of its sequence and its place in it, without the host knowing lengths."""
    token = torch.arange(len(call.q), device=call.q.device, dtype=call.ends_q.dtype)
    sequence = torch.searchsorted(call.ends_q, token, right=True) - 1
    return sequence, token - call.ends_q[sequence]


def _packed(lse: Tensor, call: Call) -> Tensor:
    sequence, place = _places(call)
    return lse[sequence, :, place].t()


def _padded(lse: Tensor, call: Call) -> Tensor:
    longest = -(-call.max_q // PADDED_TO) * PADDED_TO
    padded = lse.new_full((len(call.ends_q) - 1, len(lse), longest), torch.inf)
    sequence, place = _places(call)
    padded[sequence, :, place] = lse.t()
    return padded
