"""Attention of some rows of a causal packed batch, each to the keys of its sequence that it sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.ops.attention import varlen
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.reference import compute_scored_attention, make_causal_mask, make_empty_output
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
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
        """The call of a fused kernel: one query for each sequence, which is the last it sees."""
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
            softcap=self.softcap,
            sinks=self.sinks,
        )


# One row of each sequence, by torch's FlashAttention ----------------------------------------------------------------


def reasons_against_varlen(call: RowsCall) -> list[str]:
    """Why `attend_by_varlen` cannot take a call."""
    reasons = varlen.reasons_against(call.to_packed_call())
    if call.learns:
        reasons.append("a gradient may follow, and its backward takes no shortened keys")
    if set(call.rows.counts) != {1}:
        reasons.append("it takes one row of each sequence")
    return reasons


def attend_by_varlen(call: RowsCall) -> Tensor:
    """The number of keys up to each row is in a tensor, so the host does not wait for the device."""
    packed = call.to_packed_call()
    used = (call.rows.index - packed.ends_k[:-1] + 1).to(torch.int32)
    out, *_ = torch.ops.aten._flash_attention_forward(
        *map(varlen.make_channels_contiguous, (call.q, call.k, call.v)),
        packed.ends_q,
        packed.ends_k,
        1,
        packed.max_k,
        0.0,
        False,
        False,
        scale=call.scale,
        window_size_left=-1 if packed.window_left is None else packed.window_left,
        window_size_right=-1,
        seqused_k=used,
    )
    return out


# One sequence after the other ---------------------------------------------------------------------------------------


def attend_by_sequence(call: RowsCall) -> Tensor:
    """(n, heads, width of v), by torch's own attention, each row to the keys that it sees."""
    rows = call.rows
    ends = call.packing.cu_seqlens.tolist() if rows.cu_seqlens_host is None else rows.cu_seqlens_host
    positions: Sequence[int] | None = rows.index_host
    if positions is None and not rows.index.is_meta:
        positions = rows.index.tolist()
    parts = []
    for (first, end), (start, stop) in zip(pairwise(accumulate(rows.counts, initial=0)), pairwise(ends), strict=True):
        if first == end:
            continue
        keys, queries = slice(start, stop), slice(first, end)
        if positions is not None:  # without values a row may be any, and sees everything
            begin = start if call.window is None else max(start, positions[first] - call.window + 1)
            keys = slice(begin, positions[end - 1] + 1)
        parts.append(_attend_one_sequence(call, queries, keys, masked=positions is not None and end - first > 1))
    return torch.cat(parts) if parts else make_empty_output(call.q, call.k, call.v)


def _attend_one_sequence(call: RowsCall, queries: slice, keys: slice, *, masked: bool) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (call.q[queries], call.k[keys], call.v[keys]))
    scored = call.softcap is not None or call.sinks is not None
    columns, groups = k.shape[2], q.shape[1] // k.shape[1]
    causal = masked and not scored and q.shape[2] == columns and (call.window is None or columns <= call.window)
    mask = None
    if masked and not causal:
        key_positions = torch.arange(keys.start, keys.stop, device=call.q.device)
        mask = make_causal_mask(call.rows.index[queries], key_positions, call.window)
    if scored:
        out = compute_scored_attention(q, k, v, mask, call.scale, call.softcap, call.sinks)
    else:
        if mask is not None and groups > 1:  # with a mask torch has no fused kernel for grouped heads
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.squeeze(0).transpose(0, 1)


OP = Op(
    "rows_attention",
    [
        Backend(
            "varlen",
            attend_by_varlen,
            reasons_against_varlen,
            varlen.list_unavailable_reasons,
            tolerances=varlen.TOLERANCES,
        ),
        Backend(REFERENCE, attend_by_sequence, accept_all_inputs),
    ],
)
