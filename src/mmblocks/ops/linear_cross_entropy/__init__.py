"""Cross entropy of the language head on labelled rows only, a few at a time: (tokens, vocabulary) never exists."""

from collections.abc import Callable

from torch import Tensor

from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
from mmblocks.ops.linear_cross_entropy import chunked, reference

__all__ = ["OP", "linear_cross_entropy", "row_cross_entropies"]

OP = Op(
    "linear_cross_entropy",
    [
        Backend("chunked", chunked.compute_losses, accept_all_inputs),
        Backend(REFERENCE, reference.compute_losses, accept_all_inputs),
    ],
)


def linear_cross_entropy(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], *, vocabulary: int
) -> Tensor:
    """Sum of the cross entropies of rows that all have a target; 0 with a gradient when there are none.

    hidden: (n, dim); targets: (n,) ids. `logits` maps (m, dim) to (m, vocabulary), each row by itself and always the
    same way: it is called for a few rows at a time, and again in backward.
    """
    return row_cross_entropies(hidden, targets, logits, vocabulary=vocabulary).sum()


def row_cross_entropies(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], *, vocabulary: int
) -> Tensor:
    """(n,): the cross entropy of each row, in float32 or wider. Arguments as in `linear_cross_entropy`."""
    return OP(hidden, targets, logits, vocabulary=vocabulary)
