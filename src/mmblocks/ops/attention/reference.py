"""Packed attention written to be believed: torch's own attention on each sequence by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    causal: bool,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """See `mmblocks.ops.attention.attend`."""
    lengths = packing.lengths
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_one(*part, causal, scale, window, softcap, sinks) for part in parts])


def weighed(
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


def _one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    if softcap is None and sinks is None:
        out = _plain(q, k, v, causal, scale, window)
    else:
        mask = _window_mask(q.shape[2], window or q.shape[2], q.device) if causal else None
        out = weighed(q, k, v, mask, scale, softcap, sinks)
    return out.squeeze(0).transpose(0, 1)


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, window: int | None) -> Tensor:
    mask = _window_mask(q.shape[2], window, q.device) if causal and window and window < q.shape[2] else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (behind >= 0) & (behind < window)
