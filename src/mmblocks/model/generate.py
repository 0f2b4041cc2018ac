"""Answers to packed prompts: read without padding, written on a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.model.generation.decoding import Decoding, Stop
from mmblocks.model.generation.step import give_back, step_for
from mmblocks.model.generation.writing import prepare, read, write
from mmblocks.model.onevision import OneVision

__all__ = ["Decoding", "Stop", "generate", "written_on"]


@torch.no_grad()
def generate(
    model: OneVision, batch: Batch, decoding: Decoding | None = None, *, streamer: Any = None
) -> list[list[int]]:
    """New token ids for every packed prompt, without the stop token.

    `streamer` is one of transformers' streamers (batches of one prompt only).
    """
    x, lengths = model.embed(batch), batch.packing.lengths
    return written_on(model.backbone, x, lengths, decoding or Decoding(), Stop.of(model), streamer=streamer)


@torch.no_grad()
def written_on(
    backbone: Any, x: Tensor, lengths: Sequence[int], decoding: Decoding, stop: Stop, *, streamer: Any = None
) -> list[list[int]]:
    """The same for prompts that are embedded: x (tokens, dim), `lengths[i]` rows of prompt i, end to end."""
    decoding.require_room(backbone)
    if streamer is not None:
        streamer.put(torch.empty(len(lengths), 0, dtype=torch.int64))  # they take what is put first for the prompt
    step = step_for(backbone, len(lengths), max(lengths) + decoding.max_new_tokens, x.device)
    logits = read(backbone, step.store, x, lengths)
    prepare(step, decoding.max_new_tokens)
    ids = write(step, logits, decoding, stop, streamer=streamer)
    give_back(step)
    return ids
