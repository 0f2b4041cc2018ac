"""Every way of packed, rows' and unpacked attention against the reference in float64, value and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.ops.attention import fixed, library, rows, varlen, with_xformers
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.fixed import FixedCall
from mmblocks.ops.attention.rows import RowsCall
from mmblocks.ops.choice import REFERENCE
from mmblocks.ops.selftest import BackendResult

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the reference: sums in another order in float32; some roundings of the halves, gradients included."""
ON_CUDA = 2e-3
"""Of the reference in float32 there: torch's kernels may multiply in TF32, with 10 bits behind the point."""
OWN_TOLERANCES = {
    "xformers": with_xformers.TOLERANCE,
    "varlen": varlen.TOLERANCE,
    **dict.fromkeys(fixed.KERNELS, fixed.TOLERANCE),
}


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
        drawn = torch.Generator().manual_seed(sum(self.lengths) + self.dim)
        tokens, (heads, kv_heads) = sum(self.lengths), self.heads
        sizes = [(tokens, heads), (tokens + sum(self.cached), kv_heads), (tokens + sum(self.cached), kv_heads)]
        return [torch.randn(*size, self.dim, generator=drawn).to(device, dtype) for size in sizes]

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
    """A result for each op, way, case and type. Takes some seconds."""
    for (name, case), dtype in product(CASES.items(), TOLERANCES):
        label = f"{name}, {str(dtype).removeprefix('torch.')}"
        yield from _compare_packed(label, case, device, dtype)
        if not case.cached and case.causal:
            yield from _of_rows(label, case, device, dtype)
            yield from _single_rows(label, case, device, dtype)
        if len(case.lengths) == 1 or not case.causal:
            yield from _compare_unpacked(label, case, device, dtype)


def _compare_packed(
    label: str, case: AttentionCase, device: torch.device | str, dtype: torch.dtype
) -> Iterator[BackendResult]:
    inputs, (packing, keys) = case.make_inputs(device, dtype), case.make_packings(device)

    def make_call(q: Tensor, k: Tensor, v: Tensor) -> PackedCall:
        ends, longest = (packing.cu_seqlens, keys.cu_seqlens), (packing.max_seqlen, keys.max_seqlen)
        return PackedCall(q, k, v, ends[0], ends[1], longest[0], longest[1], case.causal, 0.1, case.window, True)

    want = _compute_value_and_gradients(
        lambda *x: library.compute_attention(make_call(*x), REFERENCE), [x.double() for x in inputs]
    )
    for backend in library.OP.backends:
        reasons = backend.reasons_against(replace(make_call(*inputs), max_k=library.round_up_length(keys.max_seqlen)))
        error = None
        if not reasons:
            got = _compute_value_and_gradients(
                lambda *x, name=backend.name: library.compute_attention(make_call(*x), name), inputs
            )
            error = _measure_error(got, want)
        yield BackendResult(
            library.OP.name, backend.name, label, error, _find_tolerance(backend.name, inputs[0]), reasons
        )


def _of_rows(
    label: str, case: AttentionCase, device: torch.device | str, dtype: torch.dtype
) -> Iterator[BackendResult]:
    """Every third row and its neighbour, with gradients."""
    counts = [len([place for place in range(n) if place % 3 < 2]) for n in case.lengths]
    places = torch.cat([torch.arange(n) for n in case.lengths])
    chosen = RowIndex((places % 3 < 2).nonzero().squeeze(1), tuple(counts)).to(device)
    yield from _compare_rows(f"{label}, some rows", case, chosen, case.make_inputs(device, dtype), learns=True)


def _single_rows(
    label: str, case: AttentionCase, device: torch.device | str, dtype: torch.dtype
) -> Iterator[BackendResult]:
    """The last row of each sequence, without gradients."""
    packing, _ = case.make_packings(device)
    chosen = RowIndex((packing.cu_seqlens[1:] - 1).long(), (1,) * len(case.lengths))
    yield from _compare_rows(f"{label}, last rows", case, chosen, case.make_inputs(device, dtype), learns=False)


def _compare_rows(
    label: str, case: AttentionCase, chosen: RowIndex, inputs: Sequence[Tensor], *, learns: bool
) -> Iterator[BackendResult]:
    packing, _ = case.make_packings(inputs[0].device)
    longest = packing.max_seqlen

    def make_call(q: Tensor, k: Tensor, v: Tensor) -> RowsCall:
        return RowsCall(q[chosen.index], k, v, packing, chosen, 0.1, case.window, None, None, learns)

    def attend_all_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends = packing.cu_seqlens
        out = library.compute_attention(
            PackedCall(q, k, v, ends, ends, longest, longest, True, 0.1, case.window, True), REFERENCE
        )
        return out[chosen.index]

    want = _compute_value_and_gradients(attend_all_rows, [x.double() for x in inputs])
    for backend in rows.OP.backends:
        reasons = backend.reasons_against(make_call(*inputs))
        error = None
        if not reasons and learns:
            error = _measure_error(
                _compute_value_and_gradients(lambda *x, way=backend: way.run(make_call(*x)), inputs), want
            )
        elif not reasons:
            error = _measure_error([backend.run(make_call(*inputs))], want[:1])
        yield BackendResult(rows.OP.name, backend.name, label, error, _find_tolerance(backend.name, inputs[0]), reasons)


def _compare_unpacked(
    label: str, case: AttentionCase, device: torch.device | str, dtype: torch.dtype
) -> Iterator[BackendResult]:
    inputs = case.make_inputs(device, dtype)

    def run_sdpa(*qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, scale=0.1, enable_gqa=case.heads[0] != case.heads[1]
        )

    def make_call(*qkv: Tensor) -> FixedCall:
        q, k, _ = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
        return FixedCall(lambda: run_sdpa(*qkv), q, k, masked=False, causal=case.causal, learns=True)

    want = _compute_value_and_gradients(run_sdpa, [x.double() for x in inputs])
    for backend in fixed.OP.backends:
        reasons = backend.reasons_against(make_call(*inputs))
        error = None
        if not reasons:
            error = _measure_error(
                _compute_value_and_gradients(lambda *x, way=backend: way.run(make_call(*x)), inputs), want
            )
        yield BackendResult(
            fixed.OP.name, backend.name, label, error, _find_tolerance(backend.name, inputs[0]), reasons
        )


# Comparing ----------------------------------------------------------------------------------------------------------


def _compute_value_and_gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        value = run(*leaves)
        pulled = torch.linspace(-1, 1, value.numel(), device=value.device).view(value.shape).to(torch.bfloat16)
        gradients = torch.autograd.grad(value, leaves, pulled.to(value.dtype))
    return [value.detach(), *gradients]


def _measure_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest difference in any tensor, relative to that tensor's largest number."""
    pairs = zip(got, want, strict=True)
    return max(float((g.double() - w).abs().max() / w.abs().max().clamp(min=1e-12)) for g, w in pairs)


def _find_tolerance(backend: str, like: Tensor) -> float:
    if backend in OWN_TOLERANCES:
        return OWN_TOLERANCES[backend].get(like.dtype, TOLERANCES[like.dtype])
    return ON_CUDA if like.is_cuda and like.dtype == torch.float32 else TOLERANCES[like.dtype]
