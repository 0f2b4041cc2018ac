"""A few rows at a time; in backward their logits are computed once more instead of having been kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmblocks.ops.linear_cross_entropy import reference

MAX_LOGITS = 2**25
"""Numbers of logits that exist at a time, 128 MiB of float32: 220 rows of 152 k words, enough for a full matmul."""


def run(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], *, vocabulary: int, most: int | None = None
) -> Tensor:
    """See `mmblocks.ops.linear_cross_entropy.row_cross_entropies`. No more than `most` logits exist at a time (default LOGITS)."""
    sizes = _sizes(len(targets), max((most or MAX_LOGITS) // vocabulary, 1))
    chunks = list(zip(*(rows.split(sizes) for rows in (hidden, targets)), strict=True))

    def compute_losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return reference.run(hidden, targets, logits, vocabulary=vocabulary)

    def compute_losses_checkpointed(hidden: Tensor, targets: Tensor) -> Tensor:
        return checkpoint(compute_losses, hidden, targets, use_reentrant=False, preserve_rng_state=False)

    first = compute_losses_checkpointed if torch.is_grad_enabled() else compute_losses
    # Backward begins with the last chunk, whose logits may therefore stay.
    return torch.cat([*(first(*chunk) for chunk in chunks[:-1]), compute_losses(*chunks[-1])])


def reasons_against(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], *, vocabulary: int
) -> list[str]:
    """None: it runs everywhere."""
    return []


def _sizes(rows: int, most: int) -> list[int]:
    """Rows of each chunk, as few chunks as may be and all about as long; one of none where there are no rows."""
    chunks = max(-(-rows // most), 1)
    return [rows * (i + 1) // chunks - rows * i // chunks for i in range(chunks)]
