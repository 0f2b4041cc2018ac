"""Prompts of many conversations, in batches of about equal length within a limit of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmblocks.chat.prompts import ChatPrompt
from mmblocks.chat.visual_cache import VisualCache, embed_prompt, encode_visuals
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generation.step import has_fixed_rope
from mmblocks.model.onevision import OneVision
from mmblocks.settings import format_value

MAX_BATCH_TOKENS = 16_384
"""Tokens of prompts and answers that are on the device together, unless a caller says otherwise."""
MIN_VIEW_TOKENS = 64
"""A view counts as at least so many tokens: its pixels and features take memory, however few tokens are made of it."""
SHARED_VISUAL_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class PromptBatches:
    """The prompts of conversations, and the visual rows that several of them show.

    processor: makes prompts of conversations. max_batch_tokens: prompts run together while their number times the cost of
    the most expensive one is within it; one alone may be above.
    """

    model: OneVision
    processor: Processor
    prompts: tuple[ChatPrompt, ...]
    max_batch_tokens: int
    visuals: VisualCache = field(default_factory=lambda: VisualCache(SHARED_VISUAL_BYTES))

    @classmethod
    def from_conversations(
        cls, model: OneVision, conversations: Sequence[Conversation], max_batch_tokens: int
    ) -> PromptBatches:
        """Reads headers and tokenises; raises `DataError` for what cannot be answered or read."""
        check_batch_tokens(max_batch_tokens)
        processor = Processor.from_model(model)
        prompts = tuple(ChatPrompt.from_conversation(processor, conversation) for conversation in conversations)
        return cls(model, processor, prompts, max_batch_tokens)

    def iterate_batches(self, costs: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """The numbers of the prompts of each batch, and their embedded rows (rows, dim), end to end.

        costs: for each prompt the tokens that it takes, its own and those behind it. Every visual is encoded once while its
        prompts follow each other. Where the encoding of a position depends on the longest text, prompts run one by one.
        """
        views = [sum(len(routed.plan.views) for routed in prompt.encoded.plans) for prompt in self.prompts]
        costs = [max(cost, MIN_VIEW_TOKENS * n) for cost, n in zip(costs, views, strict=True)]
        limit = self.max_batch_tokens if has_fixed_rope(self.model.backbone.config) else 0
        for batch in split_by_cost(costs, [prompt.keys for prompt in self.prompts], limit):
            prompts = [self.prompts[i] for i in batch]
            wanted = [(prompt, prompt.find_visuals_behind(0)) for prompt in prompts]
            rows = encode_visuals(self.model, self.processor, wanted, self.visuals)
            yield batch, torch.cat([embed_prompt(self.model, prompt, rows) for prompt in prompts])


def check_batch_tokens(given: object) -> None:
    """Raise `ConfigError` for what is no limit of tokens."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ConfigError(f"max_batch_tokens={format_value(given)} is no limit; write a whole number above 0.")


def order_by_cost(costs: Sequence[int], keys: Sequence[tuple[str, ...]]) -> list[int]:
    """Numbers of items, the most expensive first. Those that begin with the same key (of a visual) follow each other."""
    groups: dict[object, list[int]] = {}
    for i, own in enumerate(keys):
        groups.setdefault(own[0] if own else i, []).append(i)
    by_cost = sorted(groups.values(), key=lambda group: -max(costs[i] for i in group))
    return [i for group in by_cost for i in sorted(group, key=lambda i: -costs[i])]


def split_by_cost(costs: Sequence[int], keys: Sequence[tuple[str, ...]], limit: int) -> Iterator[list[int]]:
    """Numbers of items in batches whose number times their highest cost is within `limit`; an item alone may be above."""
    batch: list[int] = []
    highest = 0
    for i in order_by_cost(costs, keys):
        if batch and (len(batch) + 1) * max(highest, costs[i]) > limit:
            yield batch
            batch, highest = [], 0
        batch.append(i)
        highest = max(highest, costs[i])
    if batch:
        yield batch
