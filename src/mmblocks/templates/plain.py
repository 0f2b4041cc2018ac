from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Visual
from mmblocks.errors import DataError
from mmblocks.templates._turns import make_spans


@templates.register(
    "plain",
    source="https://arxiv.org/abs/2304.08485",
    verified_against="LLaVA-NeXT (golden conversations, labels)",
)
@dataclass(frozen=True)
class PlainCaption:
    """Visuals, then their caption and a newline: LLaVA's first stage, without roles or questions.

    With a caption the user's words are dropped, as in LLaVA's training. Learned: the caption and its newline.
    Without one (a prompt) they stay, each message with words closed by a newline; a visual alone is the prompt
    that training has seen.
    """

    stop: ClassVar[tuple[str, ...]] = ("\n",)
    special: ClassVar[tuple[str, ...]] = ()

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        roles = [m.role for m in messages]
        if roles == ["user", "assistant"]:
            return _captioned(*messages)
        if all(role == "user" for role in roles):
            return [span for m in messages for span in _asked(m)]
        raise DataError(
            f"the template 'plain' takes one user message and its caption, not {', '.join(roles)}; "
            "use a chat template, or keep only the first two messages."
        )

    def open_answer(self) -> list[Span]:
        return []


def _captioned(shown: Message, caption: Message) -> list[Span]:
    visuals = [part for part in shown.parts if isinstance(part, Visual)]
    if not visuals:
        raise DataError("the template 'plain' captions visuals and the user message has none; use a chat template.")
    return [*make_spans([*visuals, *caption.parts], learn=caption.learn), Span("\n", learn=caption.learn)]


def _asked(message: Message) -> list[Span]:
    return [*make_spans(message.parts, learn=False), *([Span("\n")] if message.text else [])]


templates.preset("v0_plain", of="plain")
