"""Causal attention of packed sequences to keys and values that lie in spans of one pool of slots, as in a running server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.ops.attention import varlen
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.reference import (
    compute_scored_attention,
    has_kernel,
    kernel,
    make_added_mask,
    make_causal_mask,
)
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
from mmblocks.reprs import format_by_shape


class SeenSpans:
    """Where the keys of packed sequences lie, the new ones among them.

    counts: queries of each sequence. Its keys are the slots from `begins[i]` on, `lengths[i]` of them; the last query sees all
    of these, each earlier one a key less. What kernels need of this is made for the first layer that asks, and kept.
    """

    def __init__(self, counts: Sequence[int], begins: Sequence[int], lengths: Sequence[int]) -> None:
        self.counts, self.begins, self.lengths = tuple(counts), tuple(begins), tuple(lengths)
        self.ends_q = (0, *accumulate(counts))
        self._packings: dict[torch.device, SpanPacking] = {}
        self._masks: dict[tuple[int, int, int | None, torch.dtype, torch.device], Tensor] = {}
        self._short_spans: dict[tuple[int, int | None, torch.dtype, torch.device], ShortSpans | None] = {}
        self._last_rows: dict[tuple[int, ...], SeenSpans] = {}

    @property
    def max_q(self) -> int:
        """The most queries of a sequence."""
        return max(self.counts)

    @property
    def max_k(self) -> int:
        """The most keys of a sequence."""
        return max(self.lengths)

    def select_last_rows(self, counts: Sequence[int]) -> SeenSpans:
        """The same for the last `counts[i]` queries of each sequence alone."""
        key = tuple(counts)
        if key not in self._last_rows:
            self._last_rows[key] = SeenSpans(key, self.begins, self.lengths)
        return self._last_rows[key]

    def get_packing(self, device: torch.device) -> SpanPacking:
        """The numbers on a device, copied there once."""
        if device not in self._packings:
            rows = (self.ends_q, (*self.begins, 0), self.lengths)
            numbers = torch.tensor([n for row in rows for n in row], dtype=torch.int32)
            numbers = numbers.to(device, non_blocking=True)  # so little is copied without waiting, pinned or not
            self._packings[device] = SpanPacking(*numbers.split([len(row) for row in rows]))
        return self._packings[device]

    def get_short_spans(self, longest: int, window: int | None, q: Tensor) -> ShortSpans | None:
        """The sequences of one query and at most `longest` keys; None where there are fewer than two."""
        key = longest, window, q.dtype, q.device
        if key not in self._short_spans:
            chosen = [
                i for i, (n, m) in enumerate(zip(self.counts, self.lengths, strict=True)) if n == 1 and m <= longest
            ]
            made = ShortSpans.from_sequences(self, chosen, window, q) if len(chosen) > 1 else None
            self._short_spans[key] = made
        return self._short_spans[key]

    def get_mask(self, rows: int, columns: int, window: int | None, q: Tensor) -> Tensor:
        """(1, 1, rows, columns) in the dtype of q, added to scores: the last of `columns` keys is that of the last row."""
        key = rows, columns, window, q.dtype, q.device
        if key not in self._masks:
            positions = torch.arange(columns, device=q.device)
            seen = make_causal_mask(positions[columns - rows :], positions, window)
            self._masks[key] = make_added_mask(seen, q)
        return self._masks[key]


class StepSpans:
    """Where the keys of one query of each sequence lie, all numbers on the device, as in a step that is captured.

    begins, lengths: (sequences,) int64, as of `SeenSpans`. max_k: no length is larger.
    """

    max_q = 1

    def __init__(self, begins: Tensor, lengths: Tensor, max_k: int) -> None:
        self.max_k = max_k
        self._begins, self._lengths = begins, lengths
        self._packing: SpanPacking | None = None
        self._spans: dict[tuple[int | None, torch.dtype], ShortSpans] = {}

    def get_packing(self, device: torch.device) -> SpanPacking:
        """The numbers as kernels take them."""
        if self._packing is None:
            ends_q = torch.arange(len(self._begins) + 1, dtype=torch.int32, device=device)
            begins_k = torch.cat([self._begins, self._begins[:1]]).to(torch.int32)
            self._packing = SpanPacking(ends_q, begins_k, self._lengths.to(torch.int32))
        return self._packing

    def get_spans(self, window: int | None, q: Tensor) -> ShortSpans:
        """All sequences, with keys for the longest that there may be."""
        key = window, q.dtype
        if key not in self._spans:
            rows = torch.arange(len(q), device=q.device)
            self._spans[key] = ShortSpans.from_tensors(rows, self._begins, self._lengths, self.max_k, window, q)
        return self._spans[key]


@dataclass(frozen=True, slots=True)
class SpanPacking:
    """int32. ends_q: (sequences + 1,), cumulative; begins_k: (sequences + 1,), the last is unused; lengths: (sequences,)."""

    ends_q: Tensor
    begins_k: Tensor
    lengths: Tensor
    __repr__ = format_by_shape


@dataclass(frozen=True, slots=True)
class ShortSpans:
    """Sequences of one query whose keys are copied into one tensor.

    rows: their queries; slots: (sequences, columns), of keys; mask: (sequences, 1, 1, columns), added to scores.
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor
    sequences: frozenset[int] = frozenset()
    __repr__ = format_by_shape

    @classmethod
    def from_sequences(cls, seen: SeenSpans, chosen: Sequence[int], window: int | None, q: Tensor) -> ShortSpans:
        """The chosen sequences."""
        rows, begins, lengths = (
            torch.tensor([x[i] for i in chosen], device=q.device) for x in (seen.ends_q, seen.begins, seen.lengths)
        )
        made = cls.from_tensors(rows, begins, lengths, max(seen.lengths[i] for i in chosen), window, q)
        return replace(made, sequences=frozenset(chosen))

    @classmethod
    def from_tensors(
        cls, rows: Tensor, begins: Tensor, lengths: Tensor, columns: int, window: int | None, q: Tensor
    ) -> ShortSpans:
        """Slots behind those of the shorter sequences repeat their last one and are masked."""
        numbers = torch.arange(columns, device=q.device)
        slots = begins[:, None] + torch.minimum(numbers, lengths[:, None] - 1)
        visible = numbers < lengths[:, None]
        if window is not None:
            visible &= numbers >= lengths[:, None] - window
        mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, -torch.inf)
        return cls(rows, slots, mask[:, None, None])


@dataclass(frozen=True, slots=True)
class SpansCall:
    """The arguments of attention to spans. q: (tokens, heads, d); k: (slots, kv_heads, d), v: (slots, kv_heads, value_dim)."""

    q: Tensor
    k: Tensor
    v: Tensor
    seen: SeenSpans | StepSpans
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    __repr__ = format_by_shape

    def to_packed_call(self) -> PackedCall:
        """The call of a kernel for packed sequences."""
        packing = self.seen.get_packing(self.q.device)
        return PackedCall(
            self.q,
            self.k,
            self.v,
            packing.ends_q,
            packing.begins_k,
            self.seen.max_q,
            self.seen.max_k,
            causal=True,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
        )


# torch's FlashAttention ---------------------------------------------------------------------------------------------


def reasons_against_varlen(call: SpansCall) -> list[str]:
    """Why `attend_by_varlen` cannot take a call."""
    return varlen.reasons_against(call.to_packed_call())


def attend_by_varlen(call: SpansCall) -> Tensor:
    """All sequences in one call, which reads the slots that they see and no others."""
    return varlen.attend_shortened(call.to_packed_call(), call.seen.get_packing(call.q.device).lengths)


# Without a kernel for spans ------------------------------------------------------------------------------------------

MAX_GATHERED_BYTES = 1 << 17
"""Single queries are computed together, of copied keys and values, where those of none are more than these: about what can be
copied while a sequence's own call is prepared."""


def attend_by_sequences(call: SpansCall) -> Tensor:
    """(tokens, heads, value_dim). Each sequence by a call of its own, whose keys are views of the pool; short ones together.

    Where lengths are known to the device only, all sequences together.
    """
    seen = call.seen
    if isinstance(seen, StepSpans):
        return _attend_together(call, seen.get_spans(call.window, call.q))
    out = call.q.new_empty(*call.q.shape[:2], call.v.shape[2])
    together = seen.get_short_spans(_find_longest_gathered(call), call.window, call.q)
    if together is not None:
        out[together.rows] = _attend_together(call, together)
    for i, ((first, end), begin, length) in enumerate(
        zip(pairwise(seen.ends_q), seen.begins, seen.lengths, strict=True)
    ):
        if first < end and (together is None or i not in together.sequences):
            keys, values = (x[begin : begin + length].transpose(0, 1).unsqueeze(0) for x in (call.k, call.v))
            out[first:end] = _attend_sequence(call, seen, call.q[first:end], keys, values)
    return out


def _find_longest_gathered(call: SpansCall) -> int:
    """Sequences of so many keys may be computed together; 0 for none."""
    if call.softcap is not None or call.sinks is not None:
        return 0
    return MAX_GATHERED_BYTES // ((call.k[0].numel() + call.v[0].numel()) * call.k.element_size())


def _attend_together(call: SpansCall, spans: ShortSpans) -> Tensor:
    """(sequences, heads, value_dim)."""
    k, v = (
        x.index_select(0, spans.slots.flatten()).unflatten(0, spans.slots.shape).transpose(1, 2)
        for x in (call.k, call.v)
    )
    q = call.q[spans.rows]
    if call.softcap is not None or call.sinks is not None:
        scored = compute_scored_attention(q.unsqueeze(2), k, v, spans.mask == 0, call.scale, call.softcap, call.sinks)
        return scored.squeeze(2)
    grouped = q.unflatten(1, (k.shape[1], -1))
    return _run_kernel(grouped, k, v, spans.mask, call.scale, causal=False).flatten(1, 2)


def _attend_sequence(call: SpansCall, seen: SeenSpans, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (rows, heads, d); k, v: (1, kv_heads, columns, d), the last of them that of the last row."""
    rows, columns = len(q), k.shape[2]
    if call.window is not None and columns > rows + call.window - 1:  # earlier keys are seen by no row
        k, v = k[:, :, 1 - rows - call.window :], v[:, :, 1 - rows - call.window :]
        columns = k.shape[2]
    hides_by_window = call.window is not None and rows > 1 and columns > call.window
    if call.softcap is not None or call.sinks is not None:
        visible = seen.get_mask(rows, columns, call.window, q) == 0
        by_heads = q.transpose(0, 1).unsqueeze(0)
        scored = compute_scored_attention(by_heads, k, v, visible, call.scale, call.softcap, call.sinks)
        return scored.squeeze(0).transpose(0, 1)
    if rows == 1:  # the heads of a group are the rows of one head, so keys are not repeated for them
        grouped = q.squeeze(0).unflatten(0, (k.shape[1], -1)).unsqueeze(0)
        return _run_kernel(grouped, k, v, None, call.scale, causal=False).squeeze(0).flatten(0, 1).unsqueeze(0)
    causal = rows == columns and not hides_by_window
    mask = None if causal else seen.get_mask(rows, columns, call.window, q)
    out = _run_kernel(q.transpose(0, 1).unsqueeze(0), k, v, mask, call.scale, causal=causal)
    return out.squeeze(0).transpose(0, 1)


def _run_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, causal: bool) -> Tensor:
    if has_kernel(q, v):
        return kernel(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)[0]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


OP = Op(
    "spans_attention",
    [
        Backend(
            "varlen",
            attend_by_varlen,
            reasons_against_varlen,
            varlen.list_unavailable_reasons,
            tolerances=varlen.TOLERANCES,
        ),
        Backend(REFERENCE, attend_by_sequences, accept_all_inputs),
    ],
)
