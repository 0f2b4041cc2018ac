"""Packed attention written to be believed: torch's own attention on each sequence by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing


def attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, causal: bool, scale: float, window: int | None = None
) -> Tensor:
    """See `mmblocks.ops.attention.attend`."""
    lengths = packing.lengths
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_one(*part, causal=causal, scale=scale, window=window) for part in parts])


def _one(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, window: int | None) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    mask = _window_mask(q.shape[2], window, q.device) if causal and window and window < q.shape[2] else None
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.squeeze(0).transpose(0, 1)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (behind >= 0) & (behind < window)
