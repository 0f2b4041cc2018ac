"""What was asked about each picture, in the words of the projector's own text tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import needs_text
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.shapes import RoutedPlan


@dataclass(frozen=True, slots=True)
class InstructionReader:
    """The text tokenizer of a projector and how many tokens it takes. It holds no weights."""

    text_tokenizer: Any
    max_tokens: int

    @classmethod
    def of(cls, projector: Any) -> InstructionReader | None:
        """None for a projector that reads no text."""
        return cls(projector.text_tokenizer, projector.max_text_tokens) if needs_text(projector) else None

    def read(self, conversation: Conversation, plans: Sequence[RoutedPlan]) -> tuple[Tensor, ...]:
        """Ids of the question, one row for each picture; all pictures of a visual have the same."""
        asked = zip(questions(conversation), plans, strict=True)
        return tuple(row for question, routed in asked for row in [self.ids(question)] * len(routed.plan.pictures))

    def ids(self, question: str) -> Tensor:
        """A question longer than `max_tokens` is cut on the side that the tokenizer says. Special tokens in it are text."""
        told = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
        ids = self.text_tokenizer(question, **told)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def questions(conversation: Conversation) -> Iterator[str]:
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
