"""Packed attention: one function for every transformers model; sequences never see each other.

`attend` and `attend_rows` are the ops; transformers' attention interface has them as `NAME` once `register` has run.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import find_autocast_dtype
from mmblocks.errors import ConfigError
from mmblocks.ops.attention import fixed, library, reference
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.fixed import FixedCall
from mmblocks.ops.attention.rows import OP as ROWS_OP
from mmblocks.ops.attention.rows import RowsCall
from mmblocks.ops.attention.slots import OP as SLOTS_OP
from mmblocks.ops.attention.slots import SeenSlots, SlotsCall
from mmblocks.ops.attention.spans import OP as SPANS_OP
from mmblocks.ops.attention.spans import SeenSpans, SpansCall, StepSpans

__all__ = [
    "FIXED_OP",
    "NAME",
    "OP",
    "ROWS_OP",
    "SLOTS_OP",
    "SPANS_OP",
    "attend",
    "attend_rows",
    "make_packing_arguments",
    "register",
]

NAME = "mmblocks"
OP = library.OP
FIXED_OP = fixed.OP
UNSUPPORTED_KEYWORDS = ("position_bias", "indices", "block_indices", "sinks")
"""Keywords by which some families change scores or skip keys, often in long texts only; an error, never dropped."""


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
    keys: Packing | None = None,
) -> Tensor:
    """Attention inside each packed sequence.

    q: (tokens, heads, head_dim); k: (key tokens, kv_heads, head_dim), heads a multiple of kv_heads; v: the same, of any
    width. `keys` is the packing of k and v where it differs from that of q: as many sequences, each with at least as
    many keys as queries; with `causal` the last query sees all of them, and each earlier one a key less.
    `window` limits a token of causal attention to itself and the window - 1 tokens before it. `softcap` bounds scores
    to +-softcap by tanh (Gemma 2). `sinks` (heads,) are scores of an extra key without a value (gpt-oss). Returns
    (tokens, heads, width of v), under autocast in its dtype. On CUDA only the reference waits for the device.
    Raises `ConfigError` where heads are no multiple of kv_heads.
    """
    _require_groups(q, k)
    keys = packing if keys is None else keys
    q, k, v = _cast_for_autocast(q, k, v)
    call = PackedCall(
        q,
        k,
        v,
        packing.cu_seqlens,
        keys.cu_seqlens,
        packing.max_seqlen,
        keys.max_seqlen,
        causal,
        scale,
        window,
        _needs_gradient(q, k, v),
        softcap,
        sinks,
    )
    return library.attend_packed(call)


def attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    rows: RowIndex,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of some rows only: q has the queries of `rows`, k and v have all tokens of `packing`.

    Equal to these rows of `attend`, and computed by its backends; (n, heads, head_dim) to (n, heads, width of v). On CUDA
    the host waits for the device, unless there is one row of each sequence and no gradient, or `rows` has its numbers on
    the host.
    """
    _require_groups(q, k)
    q, k, v = _cast_for_autocast(q, k, v)
    return ROWS_OP(RowsCall(q, k, v, packing, rows, scale, window, softcap, sinks, _needs_gradient(q, k, v)))


def _require_groups(q: Tensor, k: Tensor) -> None:
    """Refuse heads that torch's kernel for the CPU would end the process for (SIGFPE)."""
    if q.shape[1] % k.shape[1]:
        raise ConfigError(
            f"attention: heads={q.shape[1]} is no multiple of kv_heads={k.shape[1]}; write kv_heads={q.shape[1]} or a divisor."
        )


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the dtype that torch's own attention takes under autocast."""
    dtype = find_autocast_dtype(tensors[0].device.type)
    if dtype is None:
        return tensors
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


# transformers -------------------------------------------------------------------------------------------------------


@cache
def register() -> str:
    """Register attention with transformers; returns the name to pass as `attn_implementation`.

    Calls without a packing (vision towers, generation on padded prompts) take transformers' own sdpa path and masks; on
    CUDA, torch's kernels are then tried in a measured order.
    """
    library.register_flops()
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # Attention of some rows is not compiled: its shapes depend on values.
    attend_uncompiled: Any = torch.compiler.disable(attend_rows)
    AttentionInterface.register(NAME, partial(_attend_for_transformers, attend_some=attend_uncompiled))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def make_packing_arguments(
    packing: Packing, device: torch.device, keys: Packing | SeenSpans | StepSpans | None = None
) -> dict[str, Any]:
    """Keywords that carry a packing through a transformers model, and an empty mask in place of one of its own.

    `keys` as in `attend` or in spans of a pool, for a model with a cache. Longest lengths are rounded up, so that few of them differ. transformers
    passes a mask of four dimensions on as it is (masking_utils), so no (tokens, tokens) mask is built.
    """
    if isinstance(keys, SeenSpans | StepSpans):
        return {**make_packing_arguments(packing, device), "seen_spans": keys}
    keys = packing if keys is None else keys
    return {
        "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device),
        "cu_seq_lens_q": packing.cu_seqlens,
        "cu_seq_lens_k": keys.cu_seqlens,
        "max_length_q": library.round_up_length(packing.max_seqlen),
        "max_length_k": library.round_up_length(keys.max_seqlen),
    }


def _attend_for_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    rows: RowIndex | None = None,
    seen_slots: SeenSlots | None = None,
    seen_spans: SeenSpans | StepSpans | None = None,
    attend_some: Callable[..., Tensor] = attend_rows,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' calling convention: query (1, heads, tokens, head_dim) to (1, tokens, heads, head_dim).

    With `rows` the queries are those of these rows, and the packing is that of the keys. With `seen_slots` the keys are the
    slots of a cache: (sequences, heads, 1, head_dim) to (sequences, 1, heads, head_dim). With `seen_spans` they are all slots
    of a pool, and `rows` the last of some sequences.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if seen_slots is not None:
        return SLOTS_OP(SlotsCall(query, key, value, seen_slots, scale, sliding_window, softcap, s_aux)).transpose(
            1, 2
        ), None
    if cu_seq_lens_q is None or max_length_q is None:
        if softcap is not None or s_aux is not None:
            return _attend_padded(query, key, value, attention_mask, scale, softcap, s_aux), None
        return _attend_unpacked(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        ), None
    if unknown := [name for name in UNSUPPORTED_KEYWORDS if others.get(name) is not None]:
        raise NotImplementedError(f"packed attention does not support {', '.join(unknown)}")
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    packing = Packing(cu_seq_lens_q, max_length_q)
    further: dict[str, Any] = {"scale": scale, "window": sliding_window, "softcap": softcap, "sinks": s_aux}
    if seen_spans is not None:
        seen = (
            seen_spans
            if rows is None or isinstance(seen_spans, StepSpans)
            else seen_spans.select_last_rows(rows.counts)
        )
        return SPANS_OP(SpansCall(q.to(k.dtype), k, v, seen, **further)).unsqueeze(0), None  # autocast: as the pool
    if rows is not None:
        return attend_some(q, k, v, packing, rows, **further).unsqueeze(0), None
    keys = packing if cu_seq_lens_k is None or max_length_k is None else Packing(cu_seq_lens_k, max_length_k)
    return attend(q, k, v, packing, causal=True, keys=keys, **further).unsqueeze(0), None


def _attend_unpacked(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> Tensor:
    """One shape for all: (n, heads, rows, head_dim) to (n, rows, heads, head_dim)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def run_sdpa() -> Tensor:
        return sdpa_attention_forward(module, query, key, value, mask, **settings)[0]

    if torch.compiler.is_compiling() or query.is_meta:
        return run_sdpa()
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return FIXED_OP(FixedCall(run_sdpa, query, key, mask is not None, bool(causal), _needs_gradient(query, key, value)))


def _attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Capped scores and sinks without a packing, in generation. No mask means causal, as in transformers' sdpa."""
    if mask is None:
        past = key.shape[2] - query.shape[2]
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(past)
    mask = mask[..., : key.shape[2]]
    return reference.compute_scored_attention(query, key, value, mask, scale, softcap, sinks).transpose(1, 2)
