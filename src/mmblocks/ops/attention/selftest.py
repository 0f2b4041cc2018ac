"""Every way of packed, rows' and unpacked attention against the reference in float64, value and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing, Rows
from mmblocks.ops.attention import fixed, library, rows, varlen, with_xformers
from mmblocks.ops.attention.call import Call
from mmblocks.ops.attention.fixed import FixedCall
from mmblocks.ops.attention.rows import RowsCall
from mmblocks.ops.choice import REFERENCE
from mmblocks.ops.selftest import Result

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the reference: sums in another order in float32; some roundings of the halves, gradients included."""
ON_CUDA = 2e-3
"""Of the reference in float32 there: torch's kernels may multiply in TF32, with 10 bits behind the point."""
OWN = {"xformers": with_xformers.TOLERANCE, "varlen": varlen.TOLERANCE, **dict.fromkeys(fixed.KERNELS, fixed.TOLERANCE)}


@dataclass(frozen=True, slots=True)
class Case:
    """A packing, heads and a mask."""

    lengths: Sequence[int]
    cached: Sequence[int] = ()
    heads: tuple[int, int] = (4, 4)
    dim: int = 64
    causal: bool = True
    window: int | None = None

    def inputs(self, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        drawn = torch.Generator().manual_seed(sum(self.lengths) + self.dim)
        tokens, (heads, kv_heads) = sum(self.lengths), self.heads
        sizes = [(tokens, heads), (tokens + sum(self.cached), kv_heads), (tokens + sum(self.cached), kv_heads)]
        return [torch.randn(*size, self.dim, generator=drawn).to(device, dtype) for size in sizes]

    def packings(self, device: torch.device | str) -> tuple[Packing, Packing]:
        cached = self.cached or [0] * len(self.lengths)
        keys = Packing.of([own + before for own, before in zip(self.lengths, cached, strict=True)])
        return Packing.of(self.lengths).to(device), keys.to(device)


CASES = {
    "causal": Case([5, 130, 1, 64]),
    "full": Case([5, 130, 1, 64], causal=False),
    "grouped heads": Case([200, 3, 33], heads=(14, 2)),
    "head_dim 72": Case([27, 100], dim=72, causal=False),
    "head_dim 128, one head of keys": Case([257], heads=(4, 1), dim=128),
    "window": Case([150, 9], heads=(4, 2), window=17),
    "cached keys": Case([1, 30, 7], cached=[65, 0, 200], heads=(4, 2)),
    "cached keys in a window": Case([1, 30, 7], cached=[65, 0, 200], window=16),
}


def selftest(device: torch.device | str) -> Iterator[Result]:
    """A result for each op, way, case and type. Takes some seconds."""
    for (name, case), dtype in product(CASES.items(), TOLERANCES):
        label = f"{name}, {str(dtype).removeprefix('torch.')}"
        yield from _packed(label, case, device, dtype)
        if not case.cached and case.causal:
            yield from _of_rows(label, case, device, dtype)
            yield from _single_rows(label, case, device, dtype)
        if len(case.lengths) == 1 or not case.causal:
            yield from _unpacked(label, case, device, dtype)


def _packed(label: str, case: Case, device: torch.device | str, dtype: torch.dtype) -> Iterator[Result]:
    inputs, (packing, keys) = case.inputs(device, dtype), case.packings(device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Call:
        ends, longest = (packing.cu_seqlens, keys.cu_seqlens), (packing.max_seqlen, keys.max_seqlen)
        return Call(q, k, v, ends[0], ends[1], longest[0], longest[1], case.causal, 0.1, case.window, True)

    want = _value_and_gradients(lambda *x: library.computed(call(*x), REFERENCE), [x.double() for x in inputs])
    for way in library.OP.ways:
        reasons = way.reasons_against(replace(call(*inputs), max_k=library.bucket(keys.max_seqlen)))
        error = None
        if not reasons:
            got = _value_and_gradients(lambda *x, name=way.name: library.computed(call(*x), name), inputs)
            error = _error(got, want)
        yield Result(library.OP.name, way.name, label, error, _tolerance(way.name, inputs[0]), reasons)


def _of_rows(label: str, case: Case, device: torch.device | str, dtype: torch.dtype) -> Iterator[Result]:
    """Every third row and its neighbour, with gradients."""
    counts = [len([place for place in range(n) if place % 3 < 2]) for n in case.lengths]
    places = torch.cat([torch.arange(n) for n in case.lengths])
    chosen = Rows((places % 3 < 2).nonzero().squeeze(1), tuple(counts)).to(device)
    yield from _rows_against_all(f"{label}, some rows", case, chosen, case.inputs(device, dtype), learns=True)


def _single_rows(label: str, case: Case, device: torch.device | str, dtype: torch.dtype) -> Iterator[Result]:
    """The last row of each sequence, without gradients."""
    packing, _ = case.packings(device)
    chosen = Rows((packing.cu_seqlens[1:] - 1).long(), (1,) * len(case.lengths))
    yield from _rows_against_all(f"{label}, last rows", case, chosen, case.inputs(device, dtype), learns=False)


def _rows_against_all(
    label: str, case: Case, chosen: Rows, inputs: Sequence[Tensor], *, learns: bool
) -> Iterator[Result]:
    packing, _ = case.packings(inputs[0].device)
    longest = packing.max_seqlen

    def call(q: Tensor, k: Tensor, v: Tensor) -> RowsCall:
        return RowsCall(q[chosen.index], k, v, packing, chosen, 0.1, case.window, None, None, learns)

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends = packing.cu_seqlens
        out = library.computed(Call(q, k, v, ends, ends, longest, longest, True, 0.1, case.window, True), REFERENCE)
        return out[chosen.index]

    want = _value_and_gradients(whole, [x.double() for x in inputs])
    for way in rows.OP.ways:
        reasons = way.reasons_against(call(*inputs))
        error = None
        if not reasons and learns:
            error = _error(_value_and_gradients(lambda *x, way=way: way.run(call(*x)), inputs), want)
        elif not reasons:
            error = _error([way.run(call(*inputs))], want[:1])
        yield Result(rows.OP.name, way.name, label, error, _tolerance(way.name, inputs[0]), reasons)


def _unpacked(label: str, case: Case, device: torch.device | str, dtype: torch.dtype) -> Iterator[Result]:
    inputs = case.inputs(device, dtype)

    def run(*qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, scale=0.1, enable_gqa=case.heads[0] != case.heads[1]
        )

    def call(*qkv: Tensor) -> FixedCall:
        q, k, _ = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
        return FixedCall(lambda: run(*qkv), q, k, masked=False, causal=case.causal, learns=True)

    want = _value_and_gradients(run, [x.double() for x in inputs])
    for way in fixed.OP.ways:
        reasons = way.reasons_against(call(*inputs))
        error = None
        if not reasons:
            error = _error(_value_and_gradients(lambda *x, way=way: way.run(call(*x)), inputs), want)
        yield Result(fixed.OP.name, way.name, label, error, _tolerance(way.name, inputs[0]), reasons)


# Comparing ----------------------------------------------------------------------------------------------------------


def _value_and_gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        value = run(*leaves)
        pulled = torch.linspace(-1, 1, value.numel(), device=value.device).view(value.shape).to(torch.bfloat16)
        gradients = torch.autograd.grad(value, leaves, pulled.to(value.dtype))
    return [value.detach(), *gradients]


def _error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest difference in any tensor, relative to that tensor's largest number."""
    pairs = zip(got, want, strict=True)
    return max(float((g.double() - w).abs().max() / w.abs().max().clamp(min=1e-12)) for g, w in pairs)


def _tolerance(way: str, like: Tensor) -> float:
    if way in OWN:
        return OWN[way].get(like.dtype, TOLERANCES[like.dtype])
    return ON_CUDA if like.is_cuda and like.dtype == torch.float32 else TOLERANCES[like.dtype]
