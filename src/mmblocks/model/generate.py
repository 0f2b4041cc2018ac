"""Text generation for packed prompts: prefill without padding, then decoding with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.model.generation.decoding import Decoding, StopSequences, Streamer
from mmblocks.model.generation.step import acquire_step, release_step
from mmblocks.model.generation.writing import decode_answers, prefill_prompts, prepare_step
from mmblocks.model.onevision import OneVision

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

__all__ = ["Decoding", "StopSequences", "generate", "generate_from_embeddings"]


@torch.no_grad()
def generate(
    model: OneVision, batch: Batch, decoding: Decoding | None = None, *, streamer: Streamer | None = None
) -> list[list[int]]:
    """New token ids for every packed prompt, without the stop token.

    streamer: one of transformers' streamers (batches of one prompt only).
    """
    x, lengths = model.embed_tokens(batch), batch.packing.lengths
    return generate_from_embeddings(
        model.backbone, x, lengths, decoding or Decoding(), StopSequences.from_model(model), streamer=streamer
    )


@torch.no_grad()
def generate_from_embeddings(
    backbone: CausalLM,
    x: Tensor,
    lengths: Sequence[int],
    decoding: Decoding,
    stop: StopSequences,
    *,
    streamer: Streamer | None = None,
) -> list[list[int]]:
    """`generate` for embedded prompts: x (tokens, dim), `lengths[i]` rows of prompt i, end to end."""
    decoding.require_fitting_length(backbone)
    if streamer is not None:
        streamer.put(torch.empty(len(lengths), 0, dtype=torch.int64))  # streamers take the first value for the prompt
    step = acquire_step(backbone, len(lengths), max(lengths) + decoding.max_new_tokens, x.device)
    logits = prefill_prompts(backbone, step.store, x, lengths)
    prepare_step(step, decoding.max_new_tokens)
    ids = decode_answers(step, logits, decoding, stop, streamer=streamer)
    release_step(step)
    return ids
