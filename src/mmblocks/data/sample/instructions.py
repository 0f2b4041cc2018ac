"""The question about each image, as ids of the projector's own text tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import InstructedProjector, has_capability
from mmblocks.conversation import Conversation, Text, Visual
from mmblocks.shapes import RoutedPlan


@dataclass(frozen=True, slots=True)
class InstructionReader:
    """The text tokenizer of a projector and the most tokens it reads. It holds no weights."""

    text_tokenizer: Any
    max_tokens: int

    @classmethod
    def from_projector(cls, projector: object) -> InstructionReader | None:
        """None for a projector that reads no text."""
        if not has_capability(projector, InstructedProjector):
            return None
        return cls(projector.text_tokenizer, projector.max_text_tokens)

    def read_questions(self, conversation: Conversation, plans: Sequence[RoutedPlan]) -> tuple[Tensor, ...]:
        """Ids of the question, one row for each image; all images of a visual have the same."""
        pairs = zip(list_questions(conversation), plans, strict=True)
        return tuple(
            row
            for question, routed in pairs
            for row in [self.tokenize_question(question)] * len(routed.plan.unique_views)
        )

    def tokenize_question(self, question: str) -> Tensor:
        """A question longer than `max_tokens` is cut on the tokenizer's own side. Special tokens in it are read as text."""
        settings = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
        return torch.tensor(self.text_tokenizer(question, **settings)["input_ids"], dtype=torch.int64)


def list_questions(conversation: Conversation) -> Iterator[str]:
    """For each visual, the words of the user's message that shows it; empty where another role shows it.

    White space and visuals between the words become one space. Later turns are not read: their visuals came before.
    """
    for message in conversation.messages:
        text = "".join(part.text if isinstance(part, Text) else " " for part in message.parts)
        question = " ".join(text.split()) if message.role == "user" else ""
        for part in message.parts:
            if isinstance(part, Visual):
                yield question
