"""Rows made of other rows: pooling, unpadding, shrinking and row order of a whole batch are one gather."""

from __future__ import annotations

from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.choice import REFERENCE, Backend, Op
from mmblocks.ops.gather_lerp import bag, library, reference, with_triton
from mmblocks.ops.gather_lerp.turn import with_transpose

__all__ = ["OP", "gather_lerp", "gelu_gather_lerp", "with_transpose"]

OP = Op(
    "gather_lerp",
    [
        Backend(
            "triton", library.make_run("triton"), with_triton.reasons_against, with_triton.list_unavailable_reasons
        ),
        Backend("bag", library.make_run("bag"), bag.reasons_against),
        Backend(REFERENCE, reference.run, reference.reasons_against),
    ],
)


def gather_lerp(x: Tensor, taps: GatherTable) -> Tensor:
    """Row i is the sum over j of taps.weights[i, j] * x[taps.rows[i, j]].

    x: (taps.size, d). Returns (n, d) in x's type; sums are made in float32 or wider. Differentiable in x, by a gather
    along `taps.back`; where that is missing it is made in backward, for which a device has to be waited for.
    """
    return OP(x, taps, gelu=False)


def gelu_gather_lerp(x: Tensor, taps: GatherTable) -> Tensor:
    """`gather_lerp` of gelu(x), the exact one by erf. Of activations only x itself is kept for backward."""
    return OP(x, taps, gelu=True)
