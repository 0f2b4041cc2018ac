"""Attention of some rows of a causal packed batch to all keys of their sequences, as far as these rows see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.ops.attention import varlen
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.machine import reasons_against_flash
from mmblocks.ops.attention.reference import make_causal_mask
from mmblocks.ops.attention.scored import compute_scored_attention, make_empty_output
from mmblocks.ops.choice import REFERENCE, Backend, Op
from mmblocks.reprs import format_by_shape


@dataclass(frozen=True, slots=True)
class RowsCall:
    """The arguments of `attend_rows`."""

    q: Tensor
    k: Tensor
    v: Tensor
    packing: Packing
    rows: RowIndex
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    learns: bool
    __repr__ = format_by_shape

    def to_packed_call(self) -> PackedCall:
        """What a fused kernel is asked: one query per sequence, which is the last it sees."""
        ends, longest = self.packing.cu_seqlens, self.packing.max_seqlen
        single = torch.arange(len(ends), dtype=ends.dtype, device=ends.device)
        return PackedCall(
            self.q,
            self.k,
            self.v,
            single,
            ends,
            1,
            longest,
            causal=True,
            scale=self.scale,
            window=self.window,
            learns=self.learns,
            capped=self.softcap is not None,
            sinks=self.sinks is not None,
        )


# One row of each sequence, by torch's FlashAttention ----------------------------------------------------------------


def reasons_against_varlen(call: RowsCall) -> list[str]:
    """Why `by_varlen` cannot take a call."""
    reasons = varlen.reasons_against(call.to_packed_call())
    if call.learns:
        reasons.append("a gradient is asked for, and its backward knows no shortened keys")
    if set(call.rows.counts) != {1}:
        reasons.append("it takes one row of each sequence")
    return reasons


def attend_by_varlen(call: RowsCall) -> Tensor:
    """The keys up to each row are told by a tensor, so the host waits for nothing."""
    dense = call.to_packed_call()
    used = (call.rows.index - dense.ends_k[:-1] + 1).to(torch.int32)
    out, *_ = torch.ops.aten._flash_attention_forward(
        *map(varlen.make_channels_contiguous, (call.q, call.k, call.v)),
        dense.ends_q,
        dense.ends_k,
        1,
        dense.max_k,
        0.0,
        False,
        False,
        scale=call.scale,
        window_size_left=-1 if dense.window_left is None else dense.window_left,
        window_size_right=-1,
        seqused_k=used,
    )
    return out


# Each sequence by itself --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SequenceRows:
    """Asked rows of one sequence: which of q, the keys that they see, and who sees which where not all see all."""

    queries: slice
    keys: slice
    causal: bool
    mask: Tensor | None
    __repr__ = format_by_shape


def attend_by_sequence(call: RowsCall) -> Tensor:
    """(n, heads, width of v), by torch's own attention on one sequence after the other."""
    parts = [_attend_one_sequence(call, part) for part in _parts(call)]
    return torch.cat(parts) if parts else make_empty_output(call.q, call.k, call.v)


def _parts(call: RowsCall) -> Iterator[_SequenceRows]:
    ends, known = _on_host(call)
    edges = pairwise(accumulate(call.rows.counts, initial=0))
    for (first, end), (start, stop) in zip(edges, pairwise(ends), strict=True):
        if first == end:
            continue
        queries = slice(first, end)
        if known is None:
            yield _SequenceRows(queries, slice(start, stop), False, None)
            continue
        begin = start if call.window is None else max(start, known[first] - call.window + 1)
        keys = slice(begin, known[end - 1] + 1)
        yield _SequenceRows(queries, keys, *_choose_mask(call, queries, keys))


def _on_host(call: RowsCall) -> tuple[Sequence[int], Sequence[int] | None]:
    """Where sequences end, and the rows; without values a row may be any, and sees everything."""
    rows = call.rows
    ends = call.packing.cu_seqlens.tolist() if rows.cu_seqlens_host is None else rows.cu_seqlens_host
    if rows.index_host is None and rows.index.is_meta:
        return ends, None
    return ends, rows.index.tolist() if rows.index_host is None else rows.index_host


def _choose_mask(call: RowsCall, queries: slice, keys: slice) -> tuple[bool, Tensor | None]:
    """Whether torch's own causal mask will do, and the mask where none will do."""
    rows, columns = queries.stop - queries.start, keys.stop - keys.start
    if rows == 1:
        return False, None
    if rows == columns and (call.window is None or columns <= call.window):
        return True, None
    places = torch.arange(keys.start, keys.stop, device=call.q.device)
    return False, make_causal_mask(call.rows.index[queries], places, call.window)


def _attend_one_sequence(call: RowsCall, part: _SequenceRows) -> Tensor:
    parts = (call.q[part.queries], call.k[part.keys], call.v[part.keys])
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in parts)
    if call.softcap is not None or call.sinks is not None:
        out = compute_scored_attention(q, k, v, _whole_mask(call, part), call.scale, call.softcap, call.sinks)
    else:
        out = _plain(q, k, v, part, call.scale)
    return out.squeeze(0).transpose(0, 1)


def _whole_mask(call: RowsCall, part: _SequenceRows) -> Tensor | None:
    if not part.causal:
        return part.mask
    places = torch.arange(part.keys.stop - part.keys.start, device=call.q.device)
    return make_causal_mask(places, places, None)


def _plain(q: Tensor, k: Tensor, v: Tensor, part: _SequenceRows, scale: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if part.mask is not None and groups > 1:  # with a mask torch has no fused kernel for fewer heads of keys
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=part.mask,
        is_causal=part.causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


OP = Op(
    "rows_attention",
    [
        Backend("varlen", attend_by_varlen, reasons_against_varlen, unavailable_reasons=reasons_against_flash),
        Backend(REFERENCE, attend_by_sequence, lambda call: []),
    ],
)
