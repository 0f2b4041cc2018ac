"""Text generation for packed prompts: prefill without padding, then decoding with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.model.generation.decoding import Decoding, Streamer
from mmblocks.model.generation.results import AnswerTokens, Result, Score
from mmblocks.model.generation.sampling import make_prompt_key
from mmblocks.model.generation.step import acquire_step, release_step
from mmblocks.model.generation.stopping import StopSequences
from mmblocks.model.generation.writing import decode_answers, prefill_prompts, prepare_step
from mmblocks.model.onevision import OneVision

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

__all__ = ["Decoding", "Result", "Score", "StopSequences", "generate", "generate_from_embeddings"]


@torch.no_grad()
def generate(
    model: OneVision, batch: Batch, decoding: Decoding | None = None, *, streamer: Streamer | None = None
) -> list[Result]:
    """An answer to every packed prompt.

    streamer: one of transformers' streamers (batches of one prompt only).
    """
    decoding = decoding or Decoding()
    stop = StopSequences.from_model(model, decoding.stop)
    x, lengths = model.embed_tokens(batch), batch.packing.lengths
    keys = [make_prompt_key(ids) for ids in batch.input_ids.split(lengths)]
    answers = generate_from_embeddings(model.backbone, x, lengths, decoding, stop, prompt_keys=keys, streamer=streamer)
    return [stop.make_result(model.backbone, *pair) for pair in zip(answers, lengths, strict=True)]


@torch.no_grad()
def generate_from_embeddings(
    backbone: CausalLM,
    x: Tensor,
    lengths: Sequence[int],
    decoding: Decoding,
    stop: StopSequences,
    *,
    samples: int = 1,
    prompt_keys: Sequence[int] | None = None,
    streamer: Streamer | None = None,
) -> list[AnswerTokens]:
    """`generate` for embedded prompts: x (tokens, dim), `lengths[i]` rows of prompt i, end to end.

    samples: answers to each prompt, which is run once; those to one prompt adjoin in what is returned. prompt_keys: tell the
    random numbers of prompts apart (see `make_prompt_key`).
    """
    decoding.require_fitting_length(backbone)
    if streamer is not None:
        streamer.put(torch.empty(len(lengths), 0, dtype=torch.int64))  # streamers take the first value for the prompt
    step = acquire_step(backbone, samples * len(lengths), max(lengths) + decoding.max_new_tokens, x.device)
    logits = prefill_prompts(backbone, step.store, x, lengths)
    step.store.copy_first_sequences(len(lengths))
    prepare_step(step, decoding.max_new_tokens)
    random_keys = [(key, sample) for sample in range(samples) for key in prompt_keys or [0] * len(lengths)]
    answers = decode_answers(step, logits.repeat(samples, 1), decoding, stop, keys=random_keys, streamer=streamer)
    release_step(step)
    return [answer for prompt in range(len(lengths)) for answer in answers[prompt :: len(lengths)]]
