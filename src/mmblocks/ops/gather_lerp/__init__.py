"""Rows made of other rows: pooling, unpadding, shrinking and row order of a whole batch are one gather."""

from __future__ import annotations

from torch import Tensor

from mmblocks.batch import Taps
from mmblocks.ops.choice import REFERENCE, Op, Way
from mmblocks.ops.gather_lerp import bag, library, reference, with_triton
from mmblocks.ops.gather_lerp.turn import turned

__all__ = ["OP", "gather_lerp", "gelu_gather_lerp", "turned"]

OP = Op(
    "gather_lerp",
    [
        Way("triton", library.running("triton"), with_triton.reasons_against, with_triton.reasons_here),
        Way("bag", library.running("bag"), bag.reasons_against),
        Way(REFERENCE, reference.run, reference.reasons_against),
    ],
)


def gather_lerp(x: Tensor, taps: Taps) -> Tensor:
    """Row i is the sum over j of taps.weights[i, j] * x[taps.rows[i, j]].

    x: (taps.size, d). Returns (n, d) in x's type; sums are made in float32 or wider. Differentiable in x, by a gather
    along `taps.back`; where that is missing it is made in backward, for which a device has to be waited for.
    """
    return OP(x, taps, gelu=False)


def gelu_gather_lerp(x: Tensor, taps: Taps) -> Tensor:
    """`gather_lerp` of gelu(x), the exact one by erf. Of activations only x itself is kept for backward."""
    return OP(x, taps, gelu=True)
