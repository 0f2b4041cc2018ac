"""What is timed of ours: the model's own calls, as training, chat and generation use them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmblocks.batch import Batch, Rows
from mmblocks.model.onevision import OneVision


def last_rows(batch: Batch) -> Rows:
    """The last row of every sequence."""
    ends = batch.packing.cu_seqlens[1:].to(torch.int64) - 1
    return Rows(ends, (1,) * len(ends))


def last_logits(model: OneVision, batch: Batch) -> Tensor:
    """(sequences, vocabulary): the logits of each last row, from pixels."""
    return model.backbone.logits(model.hidden(batch, last_rows(batch)))
