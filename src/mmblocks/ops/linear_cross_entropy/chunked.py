"""A few rows at a time; backward computes their logits again instead of keeping them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmblocks.ops.linear_cross_entropy import reference

MAX_LOGITS = 2**25
"""Logits that exist at a time, 128 MiB of float32: 220 rows of 152 k words, enough for a full matmul."""


def compute_losses(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], *, vocabulary: int, most: int | None = None
) -> Tensor:
    """See `mmblocks.ops.linear_cross_entropy.row_cross_entropies`.

    No more than `most` logits exist at a time (default `MAX_LOGITS`): as few chunks as possible, all about as long.
    """
    rows, most_rows = len(targets), max((most or MAX_LOGITS) // vocabulary, 1)
    count = max(-(-rows // most_rows), 1)
    sizes = [rows * (i + 1) // count - rows * i // count for i in range(count)]
    chunks = list(zip(hidden.split(sizes), targets.split(sizes), strict=True))
    compute = partial(reference.compute_losses, logits=logits, vocabulary=vocabulary)

    def compute_checkpointed(hidden: Tensor, targets: Tensor) -> Tensor:
        return checkpoint(compute, hidden, targets, use_reentrant=False, preserve_rng_state=False)

    first = compute_checkpointed if torch.is_grad_enabled() else compute
    # Backward begins with the last chunk, whose logits may therefore stay.
    return torch.cat([*(first(*chunk) for chunk in chunks[:-1]), compute(*chunks[-1])])
