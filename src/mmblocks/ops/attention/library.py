"""Packed attention as one operator of torch.library, so that a compiler sees one op and a counter its FLOPs.

Whichever way computes it keeps the same for backward: queries, keys, values, the output and a number per query and
head. Lengths stay in tensors, and the longest is rounded up, so that a new packing compiles nothing anew.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmblocks.ops.attention import reference, varlen, with_xformers
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.machine import read_compute_capability, reasons_against_flash, reasons_against_xformers
from mmblocks.ops.attention.table import PACKED, OrderKey, order_backends
from mmblocks.ops.choice import REFERENCE, Backend, Op

BUCKET = 256
"""Longest lengths are rounded up to multiples of this; kernels leave what is beyond a sequence at once."""
CHOOSE_AT_RUNTIME = ""
"""The name of no way: it is chosen when the op runs, as in a compiled function, which is not compiled for one."""


def _order_for_call(call: PackedCall) -> tuple[str, ...]:
    key = OrderKey(PACKED, read_compute_capability(), call.q.shape[-1], call.causal, call.learns, call.group_size > 1)
    return order_backends(key)


MODULES = {"xformers": with_xformers, "varlen": varlen, REFERENCE: reference}
OP = Op(
    PACKED,
    [
        Backend(
            "xformers",
            with_xformers.forward,
            with_xformers.reasons_against,
            unavailable_reasons=reasons_against_xformers,
        ),
        Backend("varlen", varlen.forward, varlen.reasons_against, unavailable_reasons=reasons_against_flash),
        Backend(REFERENCE, reference.forward, reference.reasons_against),
    ],
    order=_order_for_call,
)


def round_up_length(longest: int) -> int:
    """A length rounded up; 0 and 1 stay, for kernels have ways of their own for single queries."""
    return longest if longest <= 1 else (longest + BUCKET - 1) // BUCKET * BUCKET


def compute_attention(call: PackedCall, backend: str = CHOOSE_AT_RUNTIME) -> Tensor:
    """The attention of a call, differentiable, by the way of that name."""
    if not torch.compiler.is_compiling():
        register_flops()
    out, _ = varlen_attention(
        call.q,
        call.k,
        call.v,
        call.ends_q,
        call.ends_k,
        round_up_length(call.max_q),
        round_up_length(call.max_k),
        call.causal,
        call.scale,
        call.window,
        call.learns,
        backend,
    )
    return out


@torch.library.custom_op("mmblocks::varlen_attention", mutates_args=())
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    scale: float,
    window: int | None,
    learns: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The fields of `Call` to the output and, for backward only, (heads, tokens), logarithms of sums of exponentials."""
    call = PackedCall(q, k, v, ends_q, ends_k, max_q, max_k, causal, scale, window, learns)
    if call.is_empty:
        return q.new_zeros(q.shape[0], q.shape[1], v.shape[-1]), _make_logsumexp(q, learns).fill_(-torch.inf)
    out, lse = MODULES[backend or OP.choose_backend(call).name].forward(call)
    return out, lse if learns else _make_logsumexp(q, learns)


@torch.library.custom_op("mmblocks::varlen_attention_backward", mutates_args=())
def varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    scale: float,
    window: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    call = PackedCall(q, k, v, ends_q, ends_k, max_q, max_k, causal, scale, window, True)
    if call.is_empty:
        return _make_empty_like(q).zero_(), _make_empty_like(k).zero_(), _make_empty_like(v).zero_()
    return MODULES[backend or OP.choose_backend(call).name].backward(call, grad.to(q.dtype), out, lse)


@varlen_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, learns, _ = settings
    return q.new_empty(q.shape[0], q.shape[1], v.shape[-1]), _make_logsumexp(q, learns)


@varlen_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _make_empty_like(q), _make_empty_like(k), _make_empty_like(v)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ends_q, ends_k, *settings, _, ctx.way = inputs
    out, lse = output
    ctx.settings = settings
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, ends_q, ends_k)


def _run_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*varlen_attention_backward(grad, *ctx.saved_tensors, *ctx.settings, ctx.way), *[None] * 9)


varlen_attention.register_autograd(_run_backward, setup_context=_save_for_backward)


def _make_logsumexp(q: Tensor, learns: bool) -> Tensor:
    """A number per head and query where backward needs it, none otherwise."""
    return q.new_empty(q.shape[1], q.shape[0] if learns else 0, dtype=reference.to_wide_dtype(q.dtype))


def _make_empty_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


# FLOPs: every sequence's whole rectangle, causal or not, as torch counts its own attention --------------------------


@cache
def register_flops() -> None:
    """Tell torch's counter what the ops cost. A counter knows what it was told before it was made.

    Not when this is imported: torch's counter imports Triton.
    """
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.mmblocks.varlen_attention, get_raw=True)(_count_forward_flops)
    register_flop_formula(torch.ops.mmblocks.varlen_attention_backward, get_raw=True)(_count_backward_flops)


def _count_forward_flops(
    q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, max_q: int, max_k: int, *_: Any, **__: Any
) -> int:
    return 2 * q.shape[1] * _count_pairs(ends_q, ends_k, max_q, max_k) * (q.shape[-1] + v.shape[-1])


def _count_backward_flops(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    max_q: int,
    max_k: int,
    *_: Any,
    **__: Any,
) -> int:
    """Scores once more, then gradients of queries and keys, and of weights and values."""
    return 2 * q.shape[1] * _count_pairs(ends_q, ends_k, max_q, max_k) * (3 * q.shape[-1] + 2 * v.shape[-1])


def _count_pairs(ends_q: Tensor, ends_k: Tensor, max_q: int, max_k: int) -> int:
    """Pairs of a query and a key of one sequence; all as long as the longest where lengths have no values."""
    if _without_values(ends_q):
        return (ends_q.shape[0] - 1) * max_q * max_k
    lengths = zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True)
    return sum((end - first) * (end_key - first_key) for (first, end), (first_key, end_key) in lengths)


def _without_values(ends: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return ends.is_meta or isinstance(ends, FakeTensor | FunctionalTensor)
