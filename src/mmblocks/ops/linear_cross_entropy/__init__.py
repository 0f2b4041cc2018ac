"""Cross entropy of the language head on labelled rows only: rows without a target never meet the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import IGNORE


def linear_cross_entropy(hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of the cross entropies of the rows that have a target; 0 when there is none.

    hidden: (tokens, dim); targets: (tokens,) ids or IGNORE; `logits` maps (n, dim) to (n, vocabulary).
    """
    labelled = targets != IGNORE
    return F.cross_entropy(logits(hidden[labelled]).float(), targets[labelled], reduction="sum")


def row_cross_entropies(hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """(labelled rows,) float32: the cross entropy of each row that has a target, in their order.

    Shapes as in `linear_cross_entropy`, whose result is their sum.
    """
    labelled = targets != IGNORE
    return F.cross_entropy(logits(hidden[labelled]).float(), targets[labelled], reduction="none")
