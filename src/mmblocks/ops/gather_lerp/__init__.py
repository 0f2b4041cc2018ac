"""Weighted sums of rows: pooling, unpadding, shrinking and row order of a whole batch are one gather."""

from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.gather_lerp.library import OP, compute_gather
from mmblocks.ops.gather_lerp.transpose import with_transpose

__all__ = ["OP", "gather_lerp", "gelu_gather_lerp", "with_transpose"]


def gather_lerp(x: Tensor, table: GatherTable) -> Tensor:
    """Row i is the sum over j of table.weights[i, j] * x[table.rows[i, j]].

    x: (table.size, d). Returns (n, d) in x's dtype; sums are made in float32 or wider. Differentiable in x, by a gather
    along `table.transpose`; where that is missing it is made in backward, for which the host waits for the device.
    """
    return compute_gather(x, table, OP.choose_backend(x, table, gelu=False), gelu=False)


def gelu_gather_lerp(x: Tensor, table: GatherTable) -> Tensor:
    """`gather_lerp` of gelu(x), the exact one by erf. Of activations only x itself is kept for backward."""
    return compute_gather(x, table, OP.choose_backend(x, table, gelu=True), gelu=True)
