"""Packed attention: one function for every transformers model, segments never see each other.

`attend` is the op; `NAME` is what it is called in transformers' attention interface once `register` has run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.batch import Packing
from mmblocks.ops.attention.reference import attend as attend_reference
from mmblocks.ops.attention.reference import weighed

NAME = "mmblocks"
CHOOSING = ("position_bias", "indices", "block_indices", "sinks")
"""Keywords by which some families change scores or leave keys out, often in long texts only; never dropped silently."""


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
    """Attention inside each packed sequence.

    q: (tokens, heads, head_dim); k, v: (tokens, kv_heads, head_dim), heads a multiple of kv_heads.
    `window` limits a token to itself and the window - 1 tokens before it. `softcap` bounds scores to +-softcap by tanh
    (Gemma 2). `sinks` (heads,) are scores of a place that holds nothing (gpt-oss). Returns (tokens, heads, head_dim).
    """
    return attend_reference(q, k, v, packing, causal=causal, scale=scale, window=window, softcap=softcap, sinks=sinks)


def register() -> str:
    """Make `attend` known to transformers; returns the name to pass as `attn_implementation`. Safe to call again.

    Batches without a packing (generation on padded prompts) take transformers' own sdpa path and masks.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _transformers_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def packing_arguments(packing: Packing, device: torch.device) -> dict[str, Any]:
    """Keywords that carry a packing through a transformers model, and a mask that says "the packing decides".

    A mask of four dimensions is handed through untouched (masking_utils), so no (tokens, tokens) mask is built.
    """
    return {
        "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device),
        "cu_seq_lens_q": packing.cu_seqlens,
        "cu_seq_lens_k": packing.cu_seqlens,
        "max_length_q": packing.max_seqlen,
        "max_length_k": packing.max_seqlen,
    }


def _transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' calling convention: query (1, heads, tokens, head_dim) to (1, tokens, heads, head_dim)."""
    if cu_seq_lens_q is None or max_length_q is None:
        if softcap is not None or s_aux is not None:
            return _padded_scores(query, key, value, attention_mask, scaling, softcap, s_aux), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if unknown := [name for name in CHOOSING if others.get(name) is not None]:
        raise NotImplementedError(f"packed attention does not know {', '.join(unknown)}")
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    packing = Packing(cu_seq_lens_q, max_length_q)
    out = attend(q, k, v, packing, causal=True, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux)
    return out.unsqueeze(0), None


def _padded_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Generation with what torch's own attention does not know. No mask means causal, as transformers' sdpa takes it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if mask is None:
        past = key.shape[2] - query.shape[2]
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(past)
    return weighed(query, key, value, mask[..., : key.shape[2]], scale, softcap, sinks).transpose(1, 2)
