from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message
from mmblocks.templates._turns import make_spans, split_system


@templates.register(
    "vicuna_v1",
    source="https://lmsys.org/blog/2023-03-30-vicuna/",
    verified_against="LLaVA-NeXT (golden conversations, labels)",
)
@dataclass(frozen=True)
class Vicuna:
    """Vicuna's one-line chat, used by LLaVA 1.5 (called v1 there): system USER: text ASSISTANT: answer</s>.

    Learned: the answer with the space before it (an open turn ends at "ASSISTANT:") and its </s>.
    `around_visuals` is written before and after each visual.
    """

    system: str | None = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    around_visuals: tuple[str, str] = ("", "")
    stop: ClassVar[tuple[str, ...]] = ("</s>",)
    special: ClassVar[tuple[str, ...]] = ("</s>",)

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        head = [*make_spans(system, learn=False), Span(" ")] if system else []
        return [*head, *(span for turn in turns for span in self.format_turn(turn))]

    def format_turn(self, message: Message) -> list[Span]:
        """One message of the user or the assistant."""
        parts = make_spans(message.parts, learn=message.is_learned, around=self.around_visuals)
        if message.role == "user":
            return [Span("USER: "), *parts, Span(" ")]
        return [*self.open_answer(), Span(" ", message.learn), *parts, Span("</s>", message.learn)]

    def open_answer(self) -> list[Span]:
        return [Span("ASSISTANT:")]


templates.preset(
    "llava_v1",
    of="vicuna_v1",
    system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
)
templates.preset("v1", of="vicuna_v1")
templates.preset(
    "llava_v1_mmtag",
    of="vicuna_v1",
    around_visuals=("<Image>", "</Image>"),
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant is able to understand the visual content that the user provides, and assist the user with a "
        "variety of tasks using natural language."
        "The visual content will be provided with the following format: <Image>visual content</Image>."
    ),
)
templates.preset("v1_mmtag", of="llava_v1_mmtag")
