"""Packed attention written to be believed: each sequence by itself, with torch's kernel for CPUs where it can.

Elsewhere, and where values are of another width than keys, scores are multiplied out, in float32 or wider. Tensors of one
sequence are (1, heads, rows, channels), as torch's kernel takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmblocks.ops.attention.call import PackedCall

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def reasons_against(call: PackedCall) -> list[str]:
    """None: it runs everywhere."""
    return []


def forward(call: PackedCall) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    attend = _attend_by_kernel if _has_kernel(call) else _attend_by_products
    done = [
        attend(call, *part) if _has_queries_and_keys(*part) else _make_empty_output(*part)
        for part in _split_sequences(call)
    ]
    outs, lses = zip(*done, strict=True)
    return _join_sequences(outs), (lses[0] if len(lses) == 1 else torch.cat(lses, 2)).squeeze(0).contiguous()


def backward(call: PackedCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    turn = _differentiate_by_kernel if _has_kernel(call) else _differentiate_by_products
    done = [
        turn(call, *part) if _has_queries_and_keys(*part[:3]) else tuple(map(torch.zeros_like, part[:3]))
        for part in _split_sequences(call, _to_heads_first(grad), _to_heads_first(out), lse.unsqueeze(0))
    ]
    dq, dk, dv = zip(*done, strict=True)
    return _join_sequences(dq), _join_sequences(dk), _join_sequences(dv)


def to_wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in."""
    return torch.promote_types(dtype, torch.float32)


def make_causal_mask(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """(rows, columns) bool: which keys a token sees, both given by their places in a causal sequence."""
    behind = rows[:, None] - columns[None, :]
    return (behind >= 0) & (behind < window) if window else behind >= 0


# One sequence after the other ---------------------------------------------------------------------------------------


def _split_sequences(call: PackedCall, *of_queries: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values of each sequence, and its part of what else there is a row of for each query."""
    lengths = call.ends_q.diff().tolist()
    key_lengths = lengths if call.ends_k is call.ends_q else call.ends_k.diff().tolist()
    q, k, v = map(_to_heads_first, (call.q, call.k, call.v))
    further = (x.split(lengths, 2) for x in of_queries)
    return zip(q.split(lengths, 2), k.split(key_lengths, 2), v.split(key_lengths, 2), *further, strict=True)


def _has_queries_and_keys(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there is something to attend; torch's kernel dies where there is not."""
    return bool(q.shape[2] and k.shape[2])


def _make_empty_output(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -torch.inf, dtype=to_wide_dtype(q.dtype))
    return out, lse


def _to_heads_first(x: Tensor) -> Tensor:
    """(tokens, heads, channels) to (1, heads, tokens, channels)."""
    return x.transpose(0, 1).unsqueeze(0)


def _join_sequences(parts: Sequence[Tensor]) -> Tensor:
    by_tokens = [part.squeeze(0).transpose(0, 1) for part in parts]
    return by_tokens[0].contiguous() if len(by_tokens) == 1 else torch.cat(by_tokens)


def _make_mask(call: PackedCall, q: Tensor, k: Tensor) -> Tensor | None:
    """(rows, columns) bool, True is seen; None where torch's own causal mask or none will do."""
    rows, columns = q.shape[2], k.shape[2]
    local = call.window is not None and call.window < columns
    if not call.causal or (not local and rows in (1, columns)):
        return None
    places = torch.arange(columns, device=q.device)
    return make_causal_mask(places[columns - rows :], places, call.window)


# torch's kernel -----------------------------------------------------------------------------------------------------


def _has_kernel(call: PackedCall) -> bool:
    return call.q.device.type == "cpu" and call.q.shape[-1] == call.v.shape[-1]


def _attend_by_kernel(call: PackedCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    causal, mask = _make_kernel_mask(call, q, k)
    return _kernel(q, k, v, 0.0, causal, attn_mask=mask, scale=call.scale)


def _differentiate_by_kernel(
    call: PackedCall, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    causal, mask = _make_kernel_mask(call, q, k)
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)  # laid out as the kernel itself gives it
    return _kernel_backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=call.scale)


def _make_kernel_mask(call: PackedCall, q: Tensor, k: Tensor) -> tuple[bool, Tensor | None]:
    """Whether the kernel's own causal mask is meant, and the mask as it takes one: added to scores, in their type."""
    mask = _make_mask(call, q, k)
    if mask is None:
        return call.causal and q.shape[2] > 1, None
    return False, torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)[None, None]


# Written out --------------------------------------------------------------------------------------------------------


def _attend_by_products(call: PackedCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = _compute_scores(call, q, k)
    lse = scores.logsumexp(-1)
    out = (scores - lse.unsqueeze(-1)).exp() @ _group_heads(v, 1)
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def _differentiate_by_products(
    call: PackedCall, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad, out = _group_heads(grad, call.group_size), _group_heads(out, call.group_size)
    weights = (_compute_scores(call, q, k) - lse.unflatten(1, (-1, call.group_size)).unsqueeze(-1)).exp()
    dv = weights.transpose(-2, -1) @ grad
    dscores = weights * (grad @ _group_heads(v, 1).transpose(-2, -1) - (grad * out).sum(-1, keepdim=True)) * call.scale
    dq = dscores @ _group_heads(k, 1)
    dk = dscores.transpose(-2, -1) @ _group_heads(q, call.group_size)
    return dq.flatten(1, 2).to(q.dtype), dk.sum(2).to(k.dtype), dv.sum(2).to(v.dtype)


def _compute_scores(call: PackedCall, q: Tensor, k: Tensor) -> Tensor:
    """(1, kv_heads, groups, rows, columns)."""
    scores, mask = (
        _group_heads(q, call.group_size) @ _group_heads(k, 1).transpose(-2, -1) * call.scale,
        _make_mask(call, q, k),
    )
    if mask is None and call.causal and q.shape[2] > 1:
        places = torch.arange(k.shape[2], device=q.device)
        mask = make_causal_mask(places, places, None)
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def _group_heads(x: Tensor, groups: int) -> Tensor:
    """(1, heads, rows, d) to (1, heads / groups, groups, rows, d) in a wide type."""
    return x.to(to_wide_dtype(x.dtype)).unflatten(1, (-1, groups))
