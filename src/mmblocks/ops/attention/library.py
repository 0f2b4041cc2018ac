"""Packed attention as one operator of torch.library, so that a compiler sees one op and a counter its FLOPs.

Every backend keeps the same for backward: queries, keys, values, the output and a number per query and head. Lengths stay
in tensors, and the longest is rounded up, so that a new packing needs no new compilation.
"""

from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmblocks.ops.attention import reference, varlen, with_xformers
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.order import PACKED, order_backends
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs

BUCKET = 256
"""Longest lengths are rounded up to multiples of this; kernels skip what is beyond a sequence."""
NUM_ARGUMENTS = 12
"""Of the forward operator."""
CHOOSE_AT_RUNTIME = ""
"""The name of no backend: it is chosen when the op runs, as in a compiled function, which is not compiled for one."""


OP = Op(
    PACKED,
    [
        Backend(
            "xformers",
            with_xformers.forward,
            with_xformers.reasons_against,
            with_xformers.list_unavailable_reasons,
            run_backward=with_xformers.backward,
            tolerances=with_xformers.TOLERANCES,
        ),
        Backend(
            "varlen",
            varlen.forward,
            varlen.reasons_against,
            varlen.list_unavailable_reasons,
            run_backward=varlen.backward,
            tolerances=varlen.TOLERANCES,
        ),
        Backend(REFERENCE, reference.forward, accept_all_inputs, run_backward=reference.backward),
    ],
    order=lambda call: order_backends(call.order_key) if call.q.is_cuda else OP.backends,
)


def round_up_length(longest: int) -> int:
    """A length rounded up; 0 and 1 stay, because kernels treat single queries in another way."""
    return longest if longest <= 1 else (longest + BUCKET - 1) // BUCKET * BUCKET


def attend_packed(call: PackedCall) -> Tensor:
    """The attention of a call, differentiable, by the backend that is chosen for it. Softcap and sinks are the reference's."""
    if call.softcap is not None or call.sinks is not None:
        OP.choose_backend(call)  # raises where the user chose a backend that does not know them
        return reference.attend_by_scores(call)
    choose_at_runtime = torch.compiler.is_compiling() or call.q.is_meta
    return compute_attention(call, None if choose_at_runtime else OP.choose_backend(call))


def compute_attention(call: PackedCall, backend: Backend | None = None) -> Tensor:
    """The attention of a call, differentiable, by a backend; None chooses one when the op runs."""
    if not torch.compiler.is_compiling():
        register_flops()
    # A compiler is given the operator; else autograd's node is made here, without a way through the dispatcher.
    attend = torch.ops.mmblocks.varlen_attention.default if torch.compiler.is_compiling() else run_differentiably
    out, _ = attend(
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
        CHOOSE_AT_RUNTIME if backend is None else backend.name,
    )
    return out


# By these calls and not by torch.library.custom_op, which imports the compiler, seconds of it, and checks each call for
# aliases. The backend is a string in these operators only: they take no objects.
FORWARD, BACKWARD = "mmblocks::varlen_attention", "mmblocks::varlen_attention_backward"
SETTINGS = "Tensor ends_q, Tensor ends_k, SymInt max_q, SymInt max_k, bool causal, float scale, SymInt? window"
torch.library.define(
    FORWARD, f"(Tensor q, Tensor k, Tensor v, {SETTINGS}, bool learns, str backend) -> (Tensor, Tensor)"
)
torch.library.define(
    BACKWARD,
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{SETTINGS}, str backend) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl(FORWARD, "default")
def run_attention(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """The fields of a `PackedCall` to the output and, for backward, (heads, tokens) logarithms of sums of exponentials."""
    *fields, backend = settings
    call = PackedCall(q, k, v, *fields)
    if call.is_empty:
        return q.new_zeros(q.shape[0], q.shape[1], v.shape[-1]), _make_logsumexp(q, call.learns).fill_(-torch.inf)
    out, lse = (OP.find_backend(backend) or OP.choose_backend(call)).run(call)
    return out, lse if call.learns else _make_logsumexp(q, call.learns)


@torch.library.impl(BACKWARD, "default")
def run_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    *fields, backend = settings
    call = PackedCall(q, k, v, *fields, learns=True)
    if call.is_empty:
        return _make_empty_like(q).zero_(), _make_empty_like(k).zero_(), _make_empty_like(v).zero_()
    run_backward = (OP.find_backend(backend) or OP.choose_backend(call)).run_backward
    assert run_backward is not None
    return run_backward(call, grad.to(q.dtype), out, lse)


@torch.library.register_fake(FORWARD)
def make_fake_output(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, learns, _ = settings
    return q.new_empty(q.shape[0], q.shape[1], v.shape[-1]), _make_logsumexp(q, learns)


@torch.library.register_fake(BACKWARD)
def make_fake_gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _make_empty_like(q), _make_empty_like(k), _make_empty_like(v)


class _DifferentiableAttention(torch.autograd.Function):
    """Forward and backward operator as one node of autograd; `torch.library.register_autograd` takes 80 us a call for its
    generality."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = torch.ops.mmblocks.varlen_attention.default(q, k, v, *settings)
        ends_q, ends_k, *ctx.settings, _, ctx.backend = settings
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, ends_q, ends_k)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad, _ = gradients
        if grad is None:
            return (None,) * NUM_ARGUMENTS
        found = torch.ops.mmblocks.varlen_attention_backward.default(
            grad, *ctx.saved_tensors, *ctx.settings, ctx.backend
        )
        return *found, *(None,) * (NUM_ARGUMENTS - 3)


def run_differentiably(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """The forward operator, as a node of autograd where a gradient may follow."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return cast(tuple[Tensor, Tensor], _DifferentiableAttention.apply(q, k, v, *settings))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.mmblocks.varlen_attention.default(q, k, v, *settings)


torch.library.impl(FORWARD, "Autograd", run_differentiably)


def _make_logsumexp(q: Tensor, learns: bool) -> Tensor:
    """A number per head and query where backward needs it, none otherwise."""
    return q.new_empty(q.shape[1], q.shape[0] if learns else 0, dtype=reference.to_wide_dtype(q.dtype))


def _make_empty_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


# FLOPs: every sequence's whole rectangle, causal or not, as torch counts its own attention --------------------------


@cache
def register_flops() -> None:
    """Register the FLOPs of the ops with torch's counter; a counter knows those registered before it was made.

    Not when this is imported: torch's counter imports Triton.
    """
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula(torch.ops.mmblocks.varlen_attention, get_raw=True)
    def count_forward_flops(q: Tensor, k: Tensor, v: Tensor, *packings: Any, **_: object) -> int:
        return 2 * q.shape[1] * _count_pairs(*packings[:4]) * (q.shape[-1] + v.shape[-1])

    @register_flop_formula(torch.ops.mmblocks.varlen_attention_backward, get_raw=True)
    def count_backward_flops(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *packings: Any, **_: object
    ) -> int:
        """Scores once more, then gradients of queries and keys, and of weights and values."""
        return 2 * q.shape[1] * _count_pairs(*packings[:4]) * (3 * q.shape[-1] + 2 * v.shape[-1])


def _count_pairs(ends_q: Tensor, ends_k: Tensor, max_q: int, max_k: int) -> int:
    """Pairs of a query and a key of one sequence; all as long as the longest where lengths have no values."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    if ends_q.is_meta or isinstance(ends_q, FakeTensor | FunctionalTensor):
        return (ends_q.shape[0] - 1) * max_q * max_k
    lengths = zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True)
    return sum((end - first) * (end_key - first_key) for (first, end), (first_key, end_key) in lengths)
