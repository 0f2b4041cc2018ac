"""How likely given answers to many conversations are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mmblocks.chat.batches import MAX_BATCH_TOKENS, PromptBatches
from mmblocks.chat.inputs import check_continuations, check_conversations
from mmblocks.conversation import Conversation
from mmblocks.model.generate import Score
from mmblocks.model.generation.scoring import count_key_rows, score_continuations
from mmblocks.model.onevision import OneVision


@torch.no_grad()
def score(
    model: OneVision,
    conversations: Iterable[Conversation],
    continuations: Sequence[Sequence[str]],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[list[Score]]:
    """For every conversation the scores of its continuations: texts with which the answer may begin, in their order.

    A continuation is tokenised as training on it as an answer does: behind the generation prompt of the chat template, with
    what the template writes in front of an answer (Vicuna's space), and without what it writes behind (the end token, a newline).
    Prompt and continuation are tokenised together; where a token would hold characters of both, each is tokenised by
    itself, as in generation. No end is scored, so "a cat" is at least as likely as "a cat on a mat".

    Every prompt is run once for all of its continuations; see `respond` for `max_batch_tokens` and what is shared. Scores
    do not depend on the other conversations.
    """
    conversations = check_conversations(conversations)
    texts = check_continuations(continuations, len(conversations))
    batches = PromptBatches.from_conversations(model, conversations, max_batch_tokens)
    ids = [
        batches.processor.encode_continuations(prompt.conversation, prompt.encoded, own)
        for prompt, own in zip(batches.prompts, texts, strict=True)
    ]
    lengths = [len(prompt) for prompt in batches.prompts]
    found: dict[int, list[Score]] = {}
    for batch, x in batches.iterate_batches(list(map(count_key_rows, lengths, ids))):
        scores = score_continuations(model.backbone, x, [lengths[i] for i in batch], [ids[i] for i in batch])
        found.update(zip(batch, scores, strict=True))
    return [found[i] for i in range(len(conversations))]
