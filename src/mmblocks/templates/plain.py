from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Visual
from mmblocks.errors import DataError
from mmblocks.templates.message_spans import make_spans


@templates.register(
    "plain", source="https://arxiv.org/abs/2304.08485", verified_against="LLaVA-NeXT (golden conversations, labels)"
)
@dataclass(frozen=True)
class PlainCaption:
    """Images and videos, then their caption and a newline: LLaVA's first stage, without roles or questions.

    With a caption the user's text is dropped, as in LLaVA's training. Learned: the caption and its newline.
    Without one (a prompt) the text stays, and a newline ends each message with text; an image alone is the prompt
    of training.
    """

    stop: ClassVar[tuple[str, ...]] = ("\n",)
    special: ClassVar[tuple[str, ...]] = ()

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        roles = [m.role for m in messages]
        if roles == ["user", "assistant"]:
            question, caption = messages
            visuals = [part for part in question.parts if isinstance(part, Visual)]
            if not visuals:
                raise DataError(
                    "the template 'plain' captions visuals and the user message has none; use a chat template."
                )
            return [*make_spans([*visuals, *caption.parts], learn=caption.learn), Span("\n", learn=caption.learn)]
        if all(role == "user" for role in roles):
            return [
                span
                for message in messages
                for span in (*make_spans(message.parts, learn=False), *([Span("\n")] if message.text else []))
            ]
        raise DataError(
            f"the template 'plain' takes one user message and its caption, not {', '.join(roles)}; "
            "use a chat template, or keep only the first two messages."
        )

    def open_answer(self) -> list[Span]:
        return []


templates.preset("v0_plain", of="plain")
