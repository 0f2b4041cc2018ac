"""A conversation as rows that can be compared: the ids of its text, and which row of which visual stands where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmblocks.batch import IGNORE
from mmblocks.conversation import Conversation, Text, Visual
from mmblocks.data.media.identity import digest, identity
from mmblocks.data.sample.encode import Encoded
from mmblocks.data.sample.instructions import questions
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.errors import DataError
from mmblocks.shapes import VisualShape


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a visual without its pixels: its shape, and what tells it from others."""

    visual: Visual
    shape: VisualShape
    identity: str


Looks = Mapping[int, Look]
"""By the `id` of a visual, which the look holds: visuals are no keys themselves, as arrays are neither equal nor hashable."""
NOTHING_SEEN: Looks = {}


def _look(processor: Processor, visual: Visual, before: Looks, origin: str) -> Look:
    try:
        return Look(visual, processor.shape_of(visual), identity(visual))
    except DataError as fault:
        if id(visual) in before:
            return before[id(visual)]
        raise DataError(f"{origin}: {fault}") from fault


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to where its answer begins, no pixel decoded.

    keys: for each visual a name of everything its rows are made of beside the model's weights: its content, how it is
    read, its plan, and the question where the projector reads it.
    """

    conversation: Conversation
    encoded: Encoded
    keys: tuple[str, ...]
    looks: tuple[Look, ...]

    @classmethod
    def of(cls, processor: Processor, conversation: Conversation, before: Looks = NOTHING_SEEN) -> Prompt:
        """Reads headers and tokenises; raises `DataError` for what cannot be answered or read.

        before: how visuals looked when they were shown, for those whose files are gone.
        """
        looks = tuple(_look(processor, visual, before, conversation.origin) for visual in conversation.visuals)
        encoded = processor.encoded_prompt(conversation, [look.shape for look in looks])
        asked = questions(conversation) if processor.instruction_reader else [""] * len(encoded.plans)
        shown = zip(looks, encoded.plans, asked, strict=True)
        read_as = repr(processor.images)
        keys = tuple(digest(look.identity, read_as, repr(routed), question) for look, routed, question in shown)
        return cls(conversation, encoded, keys, looks)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def counts(self) -> list[int]:
        """Visual rows of each visual."""
        return [routed.plan.num_tokens for routed in self.encoded.plans]

    @property
    def places(self) -> tuple[Tensor, ...]:
        """The rows of each visual, int64."""
        return self.encoded.visual_positions.split(self.counts)

    def shown_behind(self, kept: int) -> list[int]:
        """Numbers of the visuals that have rows behind the first `kept`."""
        return [i for i, rows in enumerate(self.places) if len(rows) and int(rows[-1]) >= kept]

    def opened(self, processor: Processor, numbers: Sequence[int]) -> Sample:
        """These visuals alone, decoded: a sample of their rows, end to end."""
        plans = tuple(self.encoded.plans[i] for i in numbers)
        rows = torch.arange(sum(routed.plan.num_tokens for routed in plans))
        ids = torch.full_like(rows, processor.placeholder_id)
        encoded = replace(
            self.encoded, input_ids=ids, targets=torch.full_like(rows, IGNORE), visual_positions=rows, plans=plans
        )
        return processor.opened(_showing(self.conversation, numbers), encoded)


def _showing(conversation: Conversation, numbers: Sequence[int]) -> Conversation:
    """The conversation with a space in place of its other visuals, so that its words stay what they are."""
    number = -1
    messages = []
    for message in conversation.messages:
        parts = []
        for part in message.parts:
            number += isinstance(part, Visual)
            parts.append(Text(" ") if isinstance(part, Visual) and number not in numbers else part)
        messages.append(replace(message, parts=tuple(parts)))
    return replace(conversation, messages=tuple(messages))
