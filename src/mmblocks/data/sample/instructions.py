"""What was asked about each image, in the words of the projector's own text tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import InstructedProjector
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.shapes import RoutedPlan


@dataclass(frozen=True, slots=True)
class InstructionReader:
    """The text tokenizer of a projector and how many tokens it takes. It holds no weights."""

    text_tokenizer: Any
    max_tokens: int

    @classmethod
    def from_projector(cls, projector: object) -> InstructionReader | None:
        """None for a projector that reads no text."""
        if not isinstance(projector, InstructedProjector) or not projector.needs_text:
            return None
        return cls(projector.text_tokenizer, projector.max_text_tokens)

    def read_questions(self, conversation: Conversation, plans: Sequence[RoutedPlan]) -> tuple[Tensor, ...]:
        """Ids of the question, one row for each image; all images of a visual have the same."""
        asked = zip(list_questions(conversation), plans, strict=True)
        return tuple(
            row
            for question, routed in asked
            for row in [self.tokenize_question(question)] * len(routed.plan.unique_views)
        )

    def tokenize_question(self, question: str) -> Tensor:
        """A question longer than `max_tokens` is cut on the side that the tokenizer says. Special tokens in it are text."""
        told = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
        ids = self.text_tokenizer(question, **told)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def list_questions(conversation: Conversation) -> Iterator[str]:
    """For each visual, the words of the user's message that shows it; nothing where somebody else shows it.

    White space and visuals between the words become one space. Later turns are not seen: their visuals came before.
    """
    for message in conversation.messages:
        said = " ".join(_words(message).split()) if message.role == "user" else ""
        for part in message.parts:
            if isinstance(part, Visual):
                yield said


def _words(message: Message) -> str:
    return "".join(part.text if isinstance(part, Text) else " " for part in message.parts)
