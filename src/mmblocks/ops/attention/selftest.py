"""Every backend of packed attention, of some rows, of slots, of spans and of one shape against the reference in float64."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmblocks.batch import Packing, RowIndex
from mmblocks.ops.attention import fixed, library, rows, slots, spans
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.fixed import FixedCall
from mmblocks.ops.attention.rows import RowsCall
from mmblocks.ops.attention.slots import SeenSlots, SlotsCall
from mmblocks.ops.attention.spans import SeenSpans, SpansCall
from mmblocks.ops.choice import Backend
from mmblocks.ops.selftest import BackendResult, compare_backends, compute_value_and_gradients

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the reference: sums in another order in float32; some roundings of the halves, gradients included."""
CUDA_FLOAT32_TOLERANCE = 2e-3
"""Of the reference on CUDA: torch's kernels may multiply in TF32, with a mantissa of 10 bits."""


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """A packing, heads and a mask."""

    lengths: Sequence[int]
    cached: Sequence[int] = ()
    heads: tuple[int, int] = (4, 4)
    dim: int = 64
    causal: bool = True
    window: int | None = None

    def make_inputs(self, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(sum(self.lengths) + self.dim)
        tokens, (heads, kv_heads) = sum(self.lengths), self.heads
        sizes = [(tokens, heads), (tokens + sum(self.cached), kv_heads), (tokens + sum(self.cached), kv_heads)]
        return [torch.randn(*size, self.dim, generator=generator).to(device, dtype) for size in sizes]

    def make_packings(self, device: torch.device | str) -> tuple[Packing, Packing]:
        cached = self.cached or [0] * len(self.lengths)
        keys = Packing.from_lengths([own + before for own, before in zip(self.lengths, cached, strict=True)])
        return Packing.from_lengths(self.lengths).to(device), keys.to(device)


CASES = {
    "causal": AttentionCase([5, 130, 1, 64]),
    "full": AttentionCase([5, 130, 1, 64], causal=False),
    "grouped heads": AttentionCase([200, 3, 33], heads=(14, 2)),
    "head_dim 72": AttentionCase([27, 100], dim=72, causal=False),
    "head_dim 128, one head of keys": AttentionCase([257], heads=(4, 1), dim=128),
    "window": AttentionCase([150, 9], heads=(4, 2), window=17),
    "cached keys": AttentionCase([1, 30, 7], cached=[65, 0, 200], heads=(4, 2)),
    "cached keys in a window": AttentionCase([1, 30, 7], cached=[65, 0, 200], window=16),
}


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each op, backend, case and dtype. Takes some seconds."""
    on_cuda = torch.device(device).type == "cuda"
    for (label, case), dtype in product(CASES.items(), TOLERANCES):
        tolerance = CUDA_FLOAT32_TOLERANCE if on_cuda and dtype == torch.float32 else TOLERANCES[dtype]
        inputs = case.make_inputs(device, dtype)
        yield from _compare_packed(label, case, inputs, tolerance)
        if not case.cached and case.causal:
            # Every third row and its neighbour, with gradients; the last row of each sequence, without.
            positions = torch.cat([torch.arange(n) for n in case.lengths])
            counts = tuple(n - n // 3 for n in case.lengths)
            some = RowIndex((positions % 3 < 2).nonzero().squeeze(1), counts).to(device)
            yield from _compare_rows(f"{label}, some rows", case, some, inputs, tolerance, learns=True)
            packing, _ = case.make_packings(device)
            last = RowIndex((packing.cu_seqlens[1:] - 1).long(), (1,) * len(case.lengths))
            yield from _compare_rows(f"{label}, last rows", case, last, inputs, tolerance, learns=False)
        if case.causal:
            yield from _compare_slots(label, case, inputs, tolerance)
            yield from _compare_spans(label, case, inputs, tolerance)
        if len(case.lengths) == 1 or not case.causal:
            yield from _compare_fixed(label, case, inputs, tolerance)


def _compare_packed(
    label: str, case: AttentionCase, inputs: Sequence[Tensor], tolerance: float
) -> Iterator[BackendResult]:
    packing, keys = case.make_packings(inputs[0].device)

    def make_call(q: Tensor, k: Tensor, v: Tensor) -> PackedCall:
        max_q, max_k = (library.round_up_length(p.max_seqlen) for p in (packing, keys))
        ends = packing.cu_seqlens, keys.cu_seqlens
        return PackedCall(q, k, v, *ends, max_q, max_k, case.causal, 0.1, case.window, True)

    def compute(backend: Backend, inputs: Sequence[Tensor] = inputs) -> list[Tensor]:
        return compute_value_and_gradients(lambda *x: library.compute_attention(make_call(*x), backend), inputs)

    want = compute(library.OP.reference, [x.double() for x in inputs])
    yield from compare_backends(library.OP, label, [make_call(*inputs)], compute, want, inputs[0].dtype, tolerance)


def _compare_rows(
    label: str, case: AttentionCase, chosen: RowIndex, inputs: Sequence[Tensor], tolerance: float, *, learns: bool
) -> Iterator[BackendResult]:
    packing, _ = case.make_packings(inputs[0].device)
    ends, longest = packing.cu_seqlens, packing.max_seqlen

    def make_call(q: Tensor, k: Tensor, v: Tensor) -> RowsCall:
        return RowsCall(q[chosen.index], k, v, packing, chosen, 0.1, case.window, None, None, learns)

    def attend_all_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        call = PackedCall(q, k, v, ends, ends, longest, longest, True, 0.1, case.window, True)
        return library.compute_attention(call, library.OP.reference)[chosen.index]

    def compute(backend: Backend) -> list[Tensor]:
        if not learns:
            return [backend.run(make_call(*inputs))]
        return compute_value_and_gradients(lambda *x: backend.run(make_call(*x)), inputs)

    want = compute_value_and_gradients(attend_all_rows, [x.double() for x in inputs])
    want = want if learns else want[:1]
    yield from compare_backends(rows.OP, label, [make_call(*inputs)], compute, want, inputs[0].dtype, tolerance)


def _compare_slots(
    label: str, case: AttentionCase, inputs: Sequence[Tensor], tolerance: float
) -> Iterator[BackendResult]:
    """The last row of each sequence, to keys in a cache with some slots to spare."""
    lengths = [own + before for own, before in zip(case.lengths, case.cached or [0] * len(case.lengths), strict=True)]
    queries = torch.tensor([*accumulate(case.lengths)], device=inputs[0].device) - 1

    def make_call(q: Tensor, k: Tensor, v: Tensor) -> SlotsCall:
        k, v = (pad_sequence([*x.split(lengths)], batch_first=True).transpose(1, 2) for x in (k, v))
        seen = SeenSlots(torch.tensor(lengths, device=q.device) - 1, max(lengths), alike=len({*lengths}) == 1)
        return SlotsCall(q[queries].unsqueeze(2), k, v, seen, 0.1, case.window)

    def compute(backend: Backend, inputs: Sequence[Tensor] = inputs) -> list[Tensor]:
        return [backend.run(make_call(*inputs))]

    want = compute(slots.OP.reference, [x.double() for x in inputs])
    yield from compare_backends(slots.OP, label, [make_call(*inputs)], compute, want, inputs[0].dtype, tolerance)


def _compare_spans(
    label: str, case: AttentionCase, inputs: Sequence[Tensor], tolerance: float
) -> Iterator[BackendResult]:
    """All rows, to keys in spans of a pool with slots between them, the last sequence first."""
    lengths = [own + before for own, before in zip(case.lengths, case.cached or [0] * len(case.lengths), strict=True)]
    gap = 3
    begins = [sum(lengths[i + 1 :]) + gap * (len(lengths) - i) for i in range(len(lengths))]

    def make_call(q: Tensor, k: Tensor, v: Tensor) -> SpansCall:
        k_pool, v_pool = (x.new_zeros(begins[0] + lengths[0] + gap, *x.shape[1:]) for x in (k, v))
        for pool, x in ((k_pool, k), (v_pool, v)):
            for begin, part in zip(begins, x.split(lengths), strict=True):
                pool[begin : begin + len(part)] = part
        return SpansCall(q, k_pool, v_pool, SeenSpans(case.lengths, begins, lengths), 0.1, case.window)

    def compute(backend: Backend, inputs: Sequence[Tensor] = inputs) -> list[Tensor]:
        return [backend.run(make_call(*inputs))]

    want = compute(spans.OP.reference, [x.double() for x in inputs])
    yield from compare_backends(spans.OP, label, [make_call(*inputs)], compute, want, inputs[0].dtype, tolerance)


def _compare_fixed(
    label: str, case: AttentionCase, inputs: Sequence[Tensor], tolerance: float
) -> Iterator[BackendResult]:
    def run_sdpa(*qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, scale=0.1, enable_gqa=case.heads[0] != case.heads[1]
        )

    def make_call(*qkv: Tensor) -> FixedCall:
        q, k, _ = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
        return FixedCall(lambda: run_sdpa(*qkv), q, k, masked=False, causal=case.causal, learns=True)

    def compute(backend: Backend) -> list[Tensor]:
        return compute_value_and_gradients(lambda *x: backend.run(make_call(*x)), inputs)

    want = compute_value_and_gradients(run_sdpa, [x.double() for x in inputs])
    yield from compare_backends(fixed.OP, label, [make_call(*inputs)], compute, want, inputs[0].dtype, tolerance)
