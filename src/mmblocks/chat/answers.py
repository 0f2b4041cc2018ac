"""Answers to many conversations."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mmblocks.chat.batches import MAX_BATCH_TOKENS, PromptBatches
from mmblocks.chat.inputs import check_conversations, check_decoding
from mmblocks.conversation import Conversation
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, Result, StopSequences, generate_from_embeddings
from mmblocks.model.generation.sampling import make_prompt_key
from mmblocks.model.onevision import OneVision
from mmblocks.settings import format_value


def answer(model: OneVision, conversations: Iterable[Conversation], decoding: Decoding | None = None) -> list[str]:
    """The text of one answer per conversation; see `respond`."""
    return [result.text for result in respond(model, conversations, decoding)]


def respond(
    model: OneVision,
    conversations: Iterable[Conversation],
    decoding: Decoding | None = None,
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[Result]:
    """One answer per conversation, in their order. Each conversation ends with a message of the user.

    Conversations of about the same length are answered together, as many as have `max_batch_tokens` tokens with their answers
    (see `split_by_cost`). What an answer is does not depend on the others. What is shown in several conversations is
    encoded once.
    """
    samples = draw_samples(model, conversations, 1, decoding, max_batch_tokens=max_batch_tokens)
    return [result for (result,) in samples]


@torch.no_grad()
def draw_samples(
    model: OneVision,
    conversations: Iterable[Conversation],
    number: int,
    decoding: Decoding | None = None,
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[list[Result]]:
    """As `respond`, with a `number` of answers to each conversation, whose prompt is run once.

    The first of them is that of `respond`. They differ where `decoding` has a temperature.
    """
    conversations, decoding = check_conversations(conversations), check_decoding(decoding)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"draw_samples: number={format_value(number)}; write how many answers, 1 or more.")
    batches = PromptBatches.from_conversations(model, conversations, max_batch_tokens)
    lengths = [len(prompt) for prompt in batches.prompts]
    stop = StopSequences.from_model(model, decoding.stop)
    found: dict[int, list[Result]] = {}
    for batch, x in batches.iterate_batches([number * (length + decoding.max_new_tokens) for length in lengths]):
        keys = [make_prompt_key(batches.prompts[i].encoded.input_ids) for i in batch]
        answers = generate_from_embeddings(
            model.backbone, x, [lengths[i] for i in batch], decoding, stop, samples=number, prompt_keys=keys
        )
        for position, i in enumerate(batch):
            own = answers[position * number : (position + 1) * number]
            found[i] = [stop.make_result(model.backbone, one, lengths[i]) for one in own]
    return [found[i] for i in range(len(conversations))]
