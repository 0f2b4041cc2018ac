"""Packed attention by xformers' memory-efficient attention, with its block-diagonal masks.

FlashAttention-2 for half precision, CUTLASS for float32 and for older devices. The masks are made of the packing's own
tensor: of the Python lists that they also carry only checks are made, which nothing here needs, and which would have
the host wait for the device. Written against xformers 0.0.35.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.machine import import_fmha, read_compute_capability, reasons_against_xformers
from mmblocks.ops.attention.varlen import reasons_against_features, reasons_against_flash_inputs

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}
"""As of varlen; CUTLASS multiplies float32 in TF32, with 10 bits behind the point."""
LSE_ALIGNMENT = 32
"""CUTLASS rounds each sequence's logarithms up to so many."""


def reasons_against(call: PackedCall) -> list[str]:
    """Empty when FlashAttention-2 or CUTLASS takes it; otherwise what speaks against each."""
    if call.q.device.type != "cuda":
        return [f"it is for CUDA, and the tensors are on {call.q.device.type}", *reasons_against_features(call)]
    if reasons := [*reasons_against_xformers(), *_against_determinism(call)]:
        return reasons
    flash, cutlass = _reasons_against_flash(call), _reasons_against_cutlass(call)
    return [f"{'; '.join(flash)} (FlashAttention-2)", f"{'; '.join(cutlass)} (CUTLASS)"] if flash and cutlass else []


def forward(call: PackedCall) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    flash = not _reasons_against_flash(call)
    q, k, v = (x.unsqueeze(0) for x in (_group_queries(call) if flash else _repeat_keys(call)))
    operator = import_fmha().flash.FwOp if flash else import_fmha().cutlass.FwOp
    out, lse = import_fmha().memory_efficient_attention_forward_requires_grad(
        q, k, v, _make_mask(call), scale=call.scale, op=operator
    )
    lse = lse.reshape(call.q.shape[1], -1) if flash else _packed(lse, call)
    return out.reshape(*call.q.shape[:2], -1).contiguous(), lse.contiguous()


def backward(call: PackedCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    flash = not _reasons_against_flash(call)
    operator = import_fmha().flash.BwOp if flash else import_fmha().cutlass.BwOp
    q, k, v = (x.unsqueeze(0) for x in _repeat_keys(call))
    lse = lse.unsqueeze(0) if flash else _padded(lse, call)
    dq, dk, dv = import_fmha().memory_efficient_attention_backward(
        grad.contiguous().unsqueeze(0), out.unsqueeze(0), lse, q, k, v, _make_mask(call), scale=call.scale, op=operator
    )
    return dq.squeeze(0).contiguous(), _sum_groups(dk, call), _sum_groups(dv, call)


# What may be asked --------------------------------------------------------------------------------------------------


def _against_determinism(call: PackedCall) -> list[str]:
    if call.learns and torch.are_deterministic_algorithms_enabled():
        return ["deterministic algorithms are asked for, and the sums of its backward have no fixed order"]
    return []


def _reasons_against_flash(call: PackedCall) -> list[str]:
    old = read_compute_capability()
    early = old is not None and old < (8, 0)
    return reasons_against_flash_inputs(call) + (["it needs compute capability 8.0"] if early else [])


def _reasons_against_cutlass(call: PackedCall) -> list[str]:
    reasons = reasons_against_features(call)
    aligned = 4 if call.q.dtype == torch.float32 else 8
    if call.q.dtype not in TOLERANCE:
        reasons.append(f"it takes float16, bfloat16 and float32, not {str(call.q.dtype).removeprefix('torch.')}")
    if call.q.shape[-1] % aligned:
        reasons.append(f"head_dim={call.q.shape[-1]} is no multiple of {aligned}")
    if call.window_left is not None and call.learns:
        reasons.append("its backward knows no window")
    if (here := read_compute_capability()) is not None and not (7, 5) <= here <= (9, 0):
        reasons.append(f"it is for compute capability 7.5 to 9.0, and this is {here[0]}.{here[1]}")
    return reasons


# Masks --------------------------------------------------------------------------------------------------------------


def _make_mask(call: PackedCall) -> Any:
    """Block-diagonal; causal ones put the last query of a sequence at its last key."""
    masks = import_fmha().attn_bias
    mask = masks.BlockDiagonalMask(
        _make_seqlen_info(call.ends_q, call.max_q), _make_seqlen_info(call.ends_k, call.max_k)
    )
    if not call.causal:
        return mask
    if call.window_left is None:
        return mask.make_causal_from_bottomright()
    return mask.make_local_attention_from_bottomright(call.window_left + 1)


def _make_seqlen_info(ends: Tensor, longest: int) -> Any:
    return import_fmha().attn_bias._SeqLenInfo(seqstart=ends, max_seqlen=longest, min_seqlen=-1, seqstart_py=[])


# Heads --------------------------------------------------------------------------------------------------------------


def _group_queries(call: PackedCall) -> list[Tensor]:
    """(tokens, kv_heads, groups, d): keys are shown to the heads of a group without being copied."""
    if call.group_size == 1:
        return [_align_heads(x) for x in (call.q, call.k, call.v)]
    q = _align_heads(call.q).unflatten(1, (-1, call.group_size))
    return [q, *(_align_heads(x).unsqueeze(2).expand(-1, -1, call.group_size, -1) for x in (call.k, call.v))]


def _repeat_keys(call: PackedCall) -> list[Tensor]:
    """(tokens, heads, d): keys copied for each head of a group, as backward and CUTLASS need it."""
    keys = (
        (call.k, call.v)
        if call.group_size == 1
        else (x.repeat_interleave(call.group_size, 1) for x in (call.k, call.v))
    )
    return [_align_heads(x) for x in (call.q, *keys)]


def _align_heads(x: Tensor) -> Tensor:
    """Heads that begin at multiples of 8 numbers and lie channel by channel."""
    return x if x.stride(-1) == 1 and not x.stride(-2) % 8 else x.contiguous()


def _sum_groups(grad: Tensor, call: PackedCall) -> Tensor:
    """(1, tokens, heads, d) to (tokens, kv_heads, d)."""
    grad = grad.squeeze(0)
    return (grad if call.group_size == 1 else grad.unflatten(1, (-1, call.group_size)).sum(2)).contiguous()


# CUTLASS' logarithms: (sequences, heads, longest), where all else here is (heads, tokens) ---------------------------


def _find_positions(call: PackedCall) -> tuple[Tensor, Tensor]:
    """For each token the number of its sequence and its place in it, without the host knowing lengths."""
    token = torch.arange(len(call.q), device=call.q.device, dtype=call.ends_q.dtype)
    sequence = torch.searchsorted(call.ends_q, token, right=True) - 1
    return sequence, token - call.ends_q[sequence]


def _packed(lse: Tensor, call: PackedCall) -> Tensor:
    sequence, place = _find_positions(call)
    return lse[sequence, :, place].t()


def _padded(lse: Tensor, call: PackedCall) -> Tensor:
    longest = -(-call.max_q // LSE_ALIGNMENT) * LSE_ALIGNMENT
    padded = lse.new_full((len(call.ends_q) - 1, len(lse), longest), torch.inf)
    sequence, place = _find_positions(call)
    padded[sequence, :, place] = lse.t()
    return padded
