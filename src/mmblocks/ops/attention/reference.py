"""The reference implementation of packed attention, by torch's kernel for CPUs: all sequences at once where they are equally
long, else one after the other.

Elsewhere, and where values have another width than keys, scores are multiplied out, in float32 or wider. So they are for
capped scores and sinks, which no fused kernel here knows and torch differentiates. Tensors of sequences of one length are
(sequences, heads, rows, channels), as torch's kernel takes them.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mmblocks.ops.attention.call import PackedCall

kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(call: PackedCall) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    outs, lses = [], []
    for q, k, v in _split_sequences(call):
        if not _has_queries_and_keys(q, k):
            out = q.new_zeros(*q.shape[:3], v.shape[3])
            lse = q.new_full(q.shape[:3], -torch.inf, dtype=to_wide_dtype(q.dtype))
        elif has_kernel(call.q, call.v):
            causal, mask = _make_kernel_mask(call, q, k)
            out, lse = kernel(q, k, v, 0.0, causal, attn_mask=mask, scale=call.scale)
        else:
            scores = _compute_scores(call, q, k)
            lse = scores.logsumexp(-1)
            out = ((scores - lse.unsqueeze(-1)).exp() @ _group_heads(v, 1)).flatten(1, 2).to(q.dtype)
            lse = lse.flatten(1, 2)
        outs.append(out)
        lses.append(lse.transpose(0, 1).flatten(1, 2))
    return _join_sequences(outs), lses[0].contiguous() if len(lses) == 1 else torch.cat(lses, 1)


def backward(call: PackedCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    gradients = []
    for q, k, v, part_grad, part_out, part_lse in _split_sequences(call, grad, out, lse.t().unsqueeze(2)):
        part_lse = part_lse.squeeze(3)
        if not _has_queries_and_keys(q, k):
            gradients.append((torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)))
        elif has_kernel(call.q, call.v):
            causal, mask = _make_kernel_mask(call, q, k)
            part_lse = part_lse.transpose(1, 2).contiguous().transpose(1, 2)  # in the layout that the kernel returns
            saved = part_grad, q, k, v, part_out, part_lse
            gradients.append(_kernel_backward(*saved, 0.0, causal, attn_mask=mask, scale=call.scale))
        else:
            gradients.append(_differentiate_products(call, q, k, v, part_grad, part_out, part_lse))
    dq, dk, dv = zip(*gradients, strict=True)
    return _join_sequences(dq), _join_sequences(dk), _join_sequences(dv)


def to_wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(dtype, torch.float32)


def make_causal_mask(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """(rows, columns) bool: which keys a token sees, both given by their positions in a causal sequence."""
    behind = rows[:, None] - columns[None, :]
    return (behind >= 0) & (behind < window) if window else behind >= 0


# Sequences ----------------------------------------------------------------------------------------------------------


def _split_sequences(call: PackedCall, *of_queries: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values, and further tensors that have a row for each query, of sequences of one length together."""
    tensors = (call.q, call.k, call.v, *of_queries)
    if len(call.ends_q) == 2:
        yield tuple(_to_heads_first(x) for x in tensors)
        return
    lengths = call.ends_q.diff().tolist()
    key_lengths = lengths if call.ends_k is call.ends_q else call.ends_k.diff().tolist()
    if len({*lengths}) == 1 == len({*key_lengths}) and lengths[0] and key_lengths[0]:
        yield tuple(_to_heads_first(x, len(lengths)) for x in tensors)
        return
    sizes = (lengths, key_lengths, key_lengths, *[lengths] * len(of_queries))
    parts = (x.split(lengths) for x, lengths in zip(tensors, sizes, strict=True))
    yield from (tuple(map(_to_heads_first, part)) for part in zip(*parts, strict=True))


def _has_queries_and_keys(q: Tensor, k: Tensor) -> bool:
    """Whether there is something to attend to; torch's kernel ends the process where there is not."""
    return bool(q.shape[2] and k.shape[2])


def _to_heads_first(x: Tensor, sequences: int = 1) -> Tensor:
    """(tokens, heads, channels) to (sequences, heads, tokens of each, channels)."""
    return x.view(sequences, -1, *x.shape[1:]).transpose(1, 2) if sequences > 1 else x.transpose(0, 1).unsqueeze(0)


def _join_sequences(parts: Sequence[Tensor]) -> Tensor:
    by_tokens = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    return by_tokens[0].contiguous() if len(by_tokens) == 1 else torch.cat(by_tokens)


def _make_mask(call: PackedCall, q: Tensor, k: Tensor) -> Tensor | None:
    """(rows, columns) bool, True is seen; None where torch's own causal mask or none will do."""
    rows, columns = q.shape[2], k.shape[2]
    local = call.window is not None and call.window < columns
    if not call.causal or (not local and rows in (1, columns)):
        return None
    positions = torch.arange(columns, device=q.device)
    return make_causal_mask(positions[columns - rows :], positions, call.window)


# torch's kernel -----------------------------------------------------------------------------------------------------


def has_kernel(q: Tensor, v: Tensor) -> bool:
    """Whether torch's kernel for the CPU takes queries and values; a mask does not keep it from grouped heads."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def _make_kernel_mask(call: PackedCall, q: Tensor, k: Tensor) -> tuple[bool, Tensor | None]:
    """Whether to use the kernel's own causal mask, and the mask that it adds to scores, in their dtype.

    All layers of a forward pass have one packing: a mask is made for the first, and kept as long as the packing.
    """
    masks = _masks.setdefault(call.ends_k, {})
    key = q.shape[2], k.shape[2], call.causal, call.window, q.dtype
    if key not in masks:
        seen = _make_mask(call, q, k)
        masks[key] = None if seen is None else make_added_mask(seen, q)
    return masks[key] is None and call.causal and q.shape[2] > 1, masks[key]


_MaskKey = tuple[int, int, bool, int | None, torch.dtype]
_masks: MutableMapping[Tensor, dict[_MaskKey, Tensor | None]] = WeakTensorKeyDictionary()


def make_added_mask(mask: Tensor, q: Tensor) -> Tensor:
    """A mask (rows, columns), True is seen, as the kernel adds it to scores: (1, 1, rows, columns) in the dtype of q."""
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)[None, None]


# Scores multiplied out ----------------------------------------------------------------------------------------------


def _differentiate_products(
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
    scores = _group_heads(q, call.group_size) @ _group_heads(k, 1).transpose(-2, -1) * call.scale
    mask = _make_mask(call, q, k)
    if mask is None and call.causal and q.shape[2] > 1:
        positions = torch.arange(k.shape[2], device=q.device)
        mask = make_causal_mask(positions, positions, None)
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def _group_heads(x: Tensor, groups: int) -> Tensor:
    """(1, heads, rows, d) to (1, heads / groups, groups, rows, d) in a wide dtype."""
    return x.to(to_wide_dtype(x.dtype)).unflatten(1, (-1, groups))


# Capped scores and sinks --------------------------------------------------------------------------------------------


def attend_by_scores(call: PackedCall) -> Tensor:
    """As `mmblocks.ops.attention.attend`, differentiated by torch."""
    parts = []
    for (first, end), (first_key, end_key) in zip(
        pairwise(call.ends_q.tolist()), pairwise(call.ends_k.tolist()), strict=True
    ):
        if first == end:
            continue
        q, k, v = map(_to_heads_first, (call.q[first:end], call.k[first_key:end_key], call.v[first_key:end_key]))
        mask = None
        if call.causal:
            positions = torch.arange(k.shape[2], device=q.device)
            mask = make_causal_mask(positions[k.shape[2] - q.shape[2] :], positions, call.window)
        out = compute_scored_attention(q, k, v, mask, call.scale, call.softcap, call.sinks)
        parts.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(parts) if parts else make_empty_output(call.q, call.k, call.v)


def make_empty_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output for no queries, with gradients of zero."""
    return q.new_zeros(*q.shape[:2], v.shape[-1]) + 0 * (q.sum() + k.sum() + v.sum())


def compute_scored_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention with capped scores and sinks. q: (n, heads, rows, d), k, v: (n, kv_heads, columns, d); True is seen."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        nothing = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, nothing], dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return weights[..., : k.shape[2]] @ v
