"""Attention with capped scores and sinks, which no fused kernel here knows: scores are multiplied out."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.reference import make_causal_mask


def attend_by_scores(call: PackedCall, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """As `mmblocks.ops.attention.attend`, one sequence after the other."""
    spans = zip(pairwise(call.ends_q.tolist()), pairwise(call.ends_k.tolist()), strict=True)
    parts = [
        _one(call, slice(*queries), slice(*keys), softcap, sinks) for queries, keys in spans if queries[0] < queries[1]
    ]
    return torch.cat(parts) if parts else make_empty_output(call.q, call.k, call.v)


def make_empty_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What no queries attend to, with gradients of zero."""
    return q.new_zeros(*q.shape[:2], v.shape[-1]) + 0 * (q.sum() + k.sum() + v.sum())


def _one(call: PackedCall, queries: slice, keys: slice, softcap: float | None, sinks: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (call.q[queries], call.k[keys], call.v[keys]))
    mask = None
    if call.causal:
        places = torch.arange(k.shape[2], device=q.device)
        mask = make_causal_mask(places[k.shape[2] - q.shape[2] :], places, call.window)
    return compute_scored_attention(q, k, v, mask, call.scale, softcap, sinks).squeeze(0).transpose(0, 1)


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
