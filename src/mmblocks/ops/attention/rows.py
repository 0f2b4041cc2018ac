"""Attention of some rows of a causal packed batch, each to the keys of its sequence that it sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise, zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.ops.attention import library, varlen
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.reference import (
    compute_scored_attention,
    has_kernel,
    kernel,
    make_added_mask,
    make_causal_mask,
    make_empty_output,
)
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
from mmblocks.reprs import format_by_shape

_GAPS = (0, 32, 128, 512)
"""Segments that are so many rows apart, or fewer, may be joined; the rows between are computed and dropped."""
_NEAR = 128
"""By sequences, rows that are so many tokens apart, or fewer, are computed together: keys that some do not see are masked."""
_FLOPS_PER_NUMBER = 400
"""What a further call costs for each number of keys and values, whose gradients are written and added once more: what a GPU
multiplies while it moves two numbers."""


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

    def to_packed_call(self, q: Tensor, ends_q: Tensor, ends_k: Tensor, max_q: int, max_k: int) -> PackedCall:
        """Causal attention of queries to all keys, by these cumulative lengths."""
        return PackedCall(
            q,
            self.k,
            self.v,
            ends_q,
            ends_k,
            max_q,
            max_k,
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
    reasons = varlen.reasons_against(_make_single_query_call(call))
    if call.learns:
        reasons.append("a gradient may follow, and its backward takes no shortened keys")
    if set(call.rows.counts) != {1}:
        reasons.append("it takes one row of each sequence")
    return reasons


def attend_by_varlen(call: RowsCall) -> Tensor:
    """Each row to the keys up to its own."""
    packed = _make_single_query_call(call)
    return varlen.attend_shortened(packed, (call.rows.index - packed.ends_k[:-1] + 1).to(torch.int32))


def _make_single_query_call(call: RowsCall) -> PackedCall:
    """One query for each sequence, which is the last it sees."""
    ends = call.packing.cu_seqlens
    single = torch.arange(len(ends), dtype=ends.dtype, device=ends.device)
    return call.to_packed_call(call.q, single, ends, 1, call.packing.max_seqlen)


# Any rows, by packed attention --------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """Tokens of one sequence that follow each other, from `first` up to `end`, and the first key that one of them sees.

    Their last key is that of their last token, so they are a sequence of packed causal attention with more keys than
    queries. rows: the numbers of the rows among them, from the first up to the end.
    """

    first_key: int
    first: int
    end: int
    rows: tuple[int, int]


def attend_by_segments(call: RowsCall) -> Tensor:
    """(n, heads, width of v), by the backends of packed attention.

    A call takes a segment of each sequence, and the keys where they are: those that no query sees are sequences without
    queries. Rows that are no segment are several calls, or segments with rows between that are computed and dropped,
    whichever costs less.
    """
    if not len(call.rows):
        return make_empty_output(call.q, call.k, call.v)
    positions, ends = _read_positions(call)
    by_call = choose_segments(call, list_spans(call.rows.counts, positions, ends, call.window))
    if len(by_call) == 1 and all(s.end - s.first == s.rows[1] - s.rows[0] for s in by_call[0]):
        return _attend_segments(call, call.q, by_call[0])
    parts, places, begin = [], [0] * len(positions), 0
    for segments in by_call:
        taken = []
        for segment in segments:
            for row in range(*segment.rows):
                until = positions[row + 1] if row + 1 < segment.rows[1] else segment.end
                places[row] = begin + len(taken)
                taken += [row] * (until - positions[row])  # a row stands for those that are dropped behind it
        begin += len(taken)
        parts.append(_attend_segments(call, call.q.index_select(0, _make_index(taken, call.q.device)), segments))
    return torch.cat(parts).index_select(0, _make_index(places, call.q.device))


def list_spans(
    counts: Sequence[int], positions: Sequence[int], ends: Sequence[int], window: int | None
) -> list[list[Segment]]:
    """The segments without other tokens, of each sequence."""
    spans = []
    for (first, end), start in zip(pairwise(accumulate(counts, initial=0)), ends[:-1], strict=True):
        found = []
        for _, group in groupby(range(first, end), key=lambda row: positions[row] - row):
            numbers = [*group]
            place, after = positions[numbers[0]], positions[numbers[-1]] + 1
            first_key = start if window is None else max(start, place - window + 1)
            found.append(Segment(first_key, place, after, (numbers[0], numbers[-1] + 1)))
        spans.append(found)
    return spans


def choose_segments(call: RowsCall, spans: list[list[Segment]]) -> list[list[Segment]]:
    """The segments of each call, of all ways to join spans the one that costs least."""
    longest = max(map(len, spans))
    ways = [[_join_near(of_one, gap) for of_one in spans] for gap in (*_GAPS, None)] if longest > 1 else [spans]
    heads, channels = call.q.shape[1], call.k.shape[-1] + call.v.shape[-1]

    def count_cost(way: list[list[Segment]]) -> int:
        pairs = sum((s.end - s.first) * (s.end - s.first_key) for of_one in way for s in of_one)
        numbers = len(call.k) * call.k.shape[1] * channels
        return 2 * heads * channels * pairs + _FLOPS_PER_NUMBER * numbers * max(map(len, way))

    chosen = min(ways, key=count_cost)
    return [[s for s in of_call if s is not None] for of_call in zip_longest(*chosen)]


def _join_near(spans: list[Segment], gap: int | None) -> list[Segment]:
    """Segments of which none is followed by another within `gap` tokens; None joins all."""
    joined = spans[:1]
    for span in spans[1:]:
        last = joined[-1]
        if gap is None or span.first - last.end <= gap:
            joined[-1] = Segment(last.first_key, last.first, span.end, (last.rows[0], span.rows[1]))
        else:
            joined.append(span)
    return joined


def _attend_segments(call: RowsCall, q: Tensor, segments: list[Segment]) -> Tensor:
    """q: the queries of all tokens of the segments. Keys between them are sequences without queries."""
    lengths = [*_list_lengths(segments, len(call.k))]
    ends = torch.tensor([(0, 0), *lengths], dtype=torch.int32, device="cpu").cumsum(0, dtype=torch.int32)
    max_q, max_k = map(max, zip(*lengths, strict=True))
    ends_q, ends_k = ends.t().contiguous().to(call.packing.cu_seqlens.device, non_blocking=True)
    return library.attend_packed(call.to_packed_call(q, ends_q, ends_k, max_q, max_k))


def _list_lengths(segments: list[Segment], tokens: int) -> Iterator[tuple[int, int]]:
    """How many queries and keys the sequences of a call have, in the order of the keys."""
    begin = 0
    for segment in segments:
        if segment.first_key > begin:
            yield 0, segment.first_key - begin
        yield segment.end - segment.first, segment.end - segment.first_key
        begin = segment.end
    if tokens > begin:
        yield 0, tokens - begin


# One sequence after the other ---------------------------------------------------------------------------------------


def attend_by_sequence(call: RowsCall) -> Tensor:
    """(n, heads, width of v), by torch's own attention, each row to the keys that it sees."""
    if not len(call.rows):
        return make_empty_output(call.q, call.k, call.v)
    positions, ends = _read_positions(call)
    by_sequence = [_join_near(s, _NEAR) for s in list_spans(call.rows.counts, positions, ends, call.window)]
    lengths = [stop - start for start, stop in pairwise(ends)]
    queries = iter(call.q.split([end - first for segments in by_sequence for *_, (first, end) in segments]))
    outs = []
    for start, k, v, segments in zip(ends[:-1], call.k.split(lengths), call.v.split(lengths), by_sequence, strict=True):
        for segment in segments:
            seen = slice(segment.first_key - start, segment.end - start)
            places = [position - segment.first_key for position in positions[slice(*segment.rows)]]
            outs.append(_attend_one_segment(call, next(queries), k[seen], v[seen], places))
    return torch.cat(outs)


def _attend_one_segment(call: RowsCall, q: Tensor, k: Tensor, v: Tensor, places: list[int]) -> Tensor:
    """places: the key of each query."""
    rows, columns, groups = len(q), len(k), q.shape[1] // k.shape[1]
    scored, local = (
        call.softcap is not None or call.sinks is not None,
        call.window is not None and columns > call.window,
    )
    causal = rows == columns > 1 and not scored and not local
    mask = None
    if rows > 1 and not causal:
        key_places = torch.arange(columns, device=q.device)
        mask = make_causal_mask(_make_index(places, q.device), key_places, call.window)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    if scored:
        out = compute_scored_attention(q, k, v, mask, call.scale, call.softcap, call.sinks)
    elif has_kernel(q, v):
        out, _ = kernel(
            q, k, v, 0.0, causal, attn_mask=None if mask is None else make_added_mask(mask, q), scale=call.scale
        )
    else:
        if mask is not None and groups > 1:  # with a mask torch has no fused kernel for grouped heads
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.squeeze(0).transpose(0, 1)


def _read_positions(call: RowsCall) -> tuple[Sequence[int], Sequence[int]]:
    """The rows, and the cumulative lengths of the packing; without values rows are the last ones, which see most."""
    rows = call.rows
    ends = call.packing.cu_seqlens.tolist() if rows.cu_seqlens_host is None else rows.cu_seqlens_host
    if rows.index_host is not None:
        return rows.index_host, ends
    if rows.index.is_meta:
        return [i for n, end in zip(rows.counts, ends[1:], strict=True) for i in range(end - n, end)], ends
    return rows.index.tolist(), ends


def _make_index(numbers: list[int], device: torch.device) -> Tensor:
    """int64 on a device, without waiting for it."""
    return torch.tensor(numbers, device="cpu").to(device, non_blocking=True)


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
        Backend("packed", attend_by_segments, accept_all_inputs),
        Backend(REFERENCE, attend_by_sequence, accept_all_inputs),
    ],
)
