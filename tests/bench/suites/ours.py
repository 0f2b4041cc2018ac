"""What is timed of ours: the model's own calls, as training, chat and generation use them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmblocks.batch import Batch, RowIndex
from mmblocks.model.onevision import OneVision


def select_last_rows(batch: Batch) -> RowIndex:
    """The last row of every sequence."""
    ends = batch.packing.cu_seqlens[1:].to(torch.int64) - 1
    return RowIndex(ends, (1,) * len(ends))


def compute_last_logits(model: OneVision, batch: Batch) -> Tensor:
    """(sequences, vocabulary): the logits of each last row, from pixels."""
    return model.backbone.compute_logits(model.compute_hidden_states(batch, select_last_rows(batch)))
