from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message
from mmblocks.templates._turns import make_spans, split_system


@templates.register(
    "llava_v0",
    source="https://arxiv.org/abs/2304.08485",
    verified_against="LLaVA-NeXT (golden conversations, labels)",
)
@dataclass(frozen=True)
class LlavaV0:
    """The first LLaVA's chat, every piece closed by ###: system###Human: text###Assistant: answer###.

    Learned: the answer with the space before it and its ###. `around_visuals` is written before and after each visual.
    """

    system: str | None = (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    )
    around_visuals: tuple[str, str] = ("", "")
    stop: ClassVar[tuple[str, ...]] = ("###",)
    special: ClassVar[tuple[str, ...]] = ()

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        head = [*make_spans(system, learn=False), Span("###")] if system else []
        return [*head, *(span for turn in turns for span in self.format_turn(turn))]

    def format_turn(self, message: Message) -> list[Span]:
        """One message of the user or the assistant."""
        parts = make_spans(message.parts, learn=message.is_learned, around=self.around_visuals)
        if message.role == "user":
            return [Span("Human: "), *parts, Span("###")]
        return [*self.open_answer(), Span(" ", message.learn), *parts, Span("###", message.learn)]

    def open_answer(self) -> list[Span]:
        return [Span("Assistant:")]


# LLaVA's own v0 puts an example turn about energy sources in front, which no training prompt has; ours has none.
templates.preset("v0", of="llava_v0")
templates.preset("default", of="llava_v0")
templates.preset(
    "llava_v0_mmtag",
    of="llava_v0",
    around_visuals=("<Image>", "</Image>"),
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant is able to understand the visual content that the user provides, and assist the user with a "
        "variety of tasks using natural language."
        "The visual content will be provided with the following format: <Image>visual content</Image>."
    ),
)
templates.preset("v0_mmtag", of="llava_v0_mmtag")
