"""Packed attention written to be believed: each sequence by itself, with torch's kernel for CPUs where it can.

Elsewhere, and where values are of another width than keys, scores are multiplied out, in float32 or wider. Tensors of one
sequence are (1, heads, rows, channels), as torch's kernel takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmblocks.ops.attention.call import Call

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def reasons_against(call: Call) -> list[str]:
    """None: it runs everywhere."""
    return []


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    attend = _by_kernel if _has_kernel(call) else _by_products
    done = [attend(call, *part) if _holds(*part) else _nothing(*part) for part in _sequences(call)]
    outs, lses = zip(*done, strict=True)
    return _packed(outs), (lses[0] if len(lses) == 1 else torch.cat(lses, 2)).squeeze(0).contiguous()


def backward(call: Call, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    turn = _turn_kernel if _has_kernel(call) else _turn_products
    done = [
        turn(call, *part) if _holds(*part[:3]) else tuple(map(torch.zeros_like, part[:3]))
        for part in _sequences(call, _by_heads(grad), _by_heads(out), lse.unsqueeze(0))
    ]
    dq, dk, dv = zip(*done, strict=True)
    return _packed(dq), _packed(dk), _packed(dv)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in."""
    return torch.promote_types(dtype, torch.float32)


def seen(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """(rows, columns) bool: which keys a token sees, both given by their places in a causal sequence."""
    behind = rows[:, None] - columns[None, :]
    return (behind >= 0) & (behind < window) if window else behind >= 0


# One sequence after the other ---------------------------------------------------------------------------------------


def _sequences(call: Call, *of_queries: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values of each sequence, and its part of what else there is a row of for each query."""
    lengths = call.ends_q.diff().tolist()
    key_lengths = lengths if call.ends_k is call.ends_q else call.ends_k.diff().tolist()
    q, k, v = map(_by_heads, (call.q, call.k, call.v))
    further = (x.split(lengths, 2) for x in of_queries)
    return zip(q.split(lengths, 2), k.split(key_lengths, 2), v.split(key_lengths, 2), *further, strict=True)


def _holds(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there is something to attend; torch's kernel dies where there is not."""
    return bool(q.shape[2] and k.shape[2])


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -torch.inf, dtype=wide(q.dtype))
    return out, lse


def _by_heads(x: Tensor) -> Tensor:
    """(tokens, heads, channels) to (1, heads, tokens, channels)."""
    return x.transpose(0, 1).unsqueeze(0)


def _packed(parts: Sequence[Tensor]) -> Tensor:
    by_tokens = [part.squeeze(0).transpose(0, 1) for part in parts]
    return by_tokens[0].contiguous() if len(by_tokens) == 1 else torch.cat(by_tokens)


def _mask(call: Call, q: Tensor, k: Tensor) -> Tensor | None:
    """(rows, columns) bool, True is seen; None where torch's own causal mask or none will do."""
    rows, columns = q.shape[2], k.shape[2]
    local = call.window is not None and call.window < columns
    if not call.causal or (not local and rows in (1, columns)):
        return None
    places = torch.arange(columns, device=q.device)
    return seen(places[columns - rows :], places, call.window)


# torch's kernel -----------------------------------------------------------------------------------------------------


def _has_kernel(call: Call) -> bool:
    return call.q.device.type == "cpu" and call.q.shape[-1] == call.v.shape[-1]


def _by_kernel(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    causal, mask = _settings(call, q, k)
    return _kernel(q, k, v, 0.0, causal, attn_mask=mask, scale=call.scale)


def _turn_kernel(
    call: Call, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    causal, mask = _settings(call, q, k)
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)  # laid out as the kernel itself gives it
    return _kernel_backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=call.scale)


def _settings(call: Call, q: Tensor, k: Tensor) -> tuple[bool, Tensor | None]:
    """Whether the kernel's own causal mask is meant, and the mask as it takes one: added to scores, in their type."""
    mask = _mask(call, q, k)
    if mask is None:
        return call.causal and q.shape[2] > 1, None
    return False, torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)[None, None]


# Written out --------------------------------------------------------------------------------------------------------


def _by_products(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = _scores(call, q, k)
    lse = scores.logsumexp(-1)
    out = (scores - lse.unsqueeze(-1)).exp() @ _grouped(v, 1)
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def _turn_products(
    call: Call, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad, out = _grouped(grad, call.groups), _grouped(out, call.groups)
    weights = (_scores(call, q, k) - lse.unflatten(1, (-1, call.groups)).unsqueeze(-1)).exp()
    dv = weights.transpose(-2, -1) @ grad
    dscores = weights * (grad @ _grouped(v, 1).transpose(-2, -1) - (grad * out).sum(-1, keepdim=True)) * call.scale
    dq = dscores @ _grouped(k, 1)
    dk = dscores.transpose(-2, -1) @ _grouped(q, call.groups)
    return dq.flatten(1, 2).to(q.dtype), dk.sum(2).to(k.dtype), dv.sum(2).to(v.dtype)


def _scores(call: Call, q: Tensor, k: Tensor) -> Tensor:
    """(1, kv_heads, groups, rows, columns)."""
    scores, mask = _grouped(q, call.groups) @ _grouped(k, 1).transpose(-2, -1) * call.scale, _mask(call, q, k)
    if mask is None and call.causal and q.shape[2] > 1:
        places = torch.arange(k.shape[2], device=q.device)
        mask = seen(places, places, None)
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(1, heads, rows, d) to (1, heads / groups, groups, rows, d) in a wide type."""
    return x.to(wide(x.dtype)).unflatten(1, (-1, groups))
