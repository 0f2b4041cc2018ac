"""A conversation as rows that can be compared: the ids of its text, and which row of which visual stands where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmblocks.batch import IGNORE
from mmblocks.conversation import Conversation, Text, Visual
from mmblocks.data.media.identity import identify_visual, is_in_memory, make_digest
from mmblocks.data.sample.encode import Encoded
from mmblocks.data.sample.instructions import list_questions
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.errors import DataError
from mmblocks.shapes import VisualShape


@dataclass(frozen=True, slots=True)
class VisualHeader:
    """What is known of a visual without its pixels: its shape, and the name of its content."""

    visual: Visual
    shape: VisualShape
    identity: str


VisualHeaders = Mapping[int, VisualHeader]
"""By the `id` of a visual, which the header keeps alive: arrays are neither equal nor hashable, so visuals are no keys."""
NO_HEADERS: VisualHeaders = {}


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation up to where its answer begins, no pixel decoded.

    keys: for each visual a name of everything its rows are made of beside the model's weights: its content, how it is
    read, its plan, and the question where the projector reads it.
    """

    conversation: Conversation
    encoded: Encoded
    keys: tuple[str, ...]
    headers: tuple[VisualHeader, ...]

    @classmethod
    def from_conversation(
        cls, processor: Processor, conversation: Conversation, before: VisualHeaders = NO_HEADERS
    ) -> ChatPrompt:
        """Reads headers and tokenises; raises `DataError` for what cannot be answered or read.

        before: headers from when visuals were shown, for those whose files are gone, and those that are in memory, which are
        read once.
        """
        headers = []
        for visual in conversation.visuals:
            header = before.get(id(visual))
            if header is None or not is_in_memory(visual.source):
                try:
                    header = VisualHeader(visual, processor.read_shape(visual), identify_visual(visual))
                except DataError as fault:
                    if header is None:
                        raise DataError(f"{conversation.origin}: {fault}") from fault
            headers.append(header)
        encoded = processor.encode_conversation_prompt(conversation, [header.shape for header in headers])
        questions = list_questions(conversation) if processor.instruction_reader else [""] * len(encoded.plans)
        shown = zip(headers, encoded.plans, questions, strict=True)
        reading = repr(processor.images)
        keys = tuple(
            make_digest(header.identity, reading, repr(routed), question) for header, routed, question in shown
        )
        return cls(conversation, encoded, keys, tuple(headers))

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def row_counts(self) -> list[int]:
        """Visual rows of each visual."""
        return [routed.plan.num_tokens for routed in self.encoded.plans]

    @property
    def row_positions(self) -> tuple[Tensor, ...]:
        """The rows of each visual, int64."""
        return self.encoded.visual_positions.split(self.row_counts)

    def find_visuals_behind(self, kept: int) -> list[int]:
        """Numbers of the visuals that have rows behind the first `kept`."""
        return [i for i, rows in enumerate(self.row_positions) if len(rows) and int(rows[-1]) >= kept]

    def open_visuals(self, processor: Processor, numbers: Sequence[int]) -> Sample:
        """These visuals alone, decoded: a sample of their rows, end to end."""
        plans = tuple(self.encoded.plans[i] for i in numbers)
        rows = torch.arange(sum(routed.plan.num_tokens for routed in plans))
        ids = torch.full_like(rows, processor.placeholder_id)
        encoded = replace(
            self.encoded, input_ids=ids, targets=torch.full_like(rows, IGNORE), visual_positions=rows, plans=plans
        )
        # A space in place of the other visuals, so that the words around them stay what they are.
        number, messages = -1, []
        for message in self.conversation.messages:
            parts = []
            for part in message.parts:
                number += isinstance(part, Visual)
                parts.append(Text(" ") if isinstance(part, Visual) and number not in numbers else part)
            messages.append(replace(message, parts=tuple(parts)))
        return processor.make_sample(replace(self.conversation, messages=tuple(messages)), encoded)
