from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Part
from mmblocks.templates.message_spans import make_spans, split_system


@templates.register(
    "chatml", source="https://arxiv.org/abs/2309.16609", verified_against="LLaVA-NeXT (golden conversations, labels)"
)
@dataclass(frozen=True)
class ChatML:
    """ChatML turns, as Qwen models are tuned on: <|im_start|>role, newline, text, <|im_end|>, newline.

    Learned: the answer and its <|im_end|>. The newline after <|im_end|> is not: generation has stopped before it.
    `system=None` writes no system turn, which saves small models some twenty tokens.
    """

    system: str | None = None
    stop: ClassVar[tuple[str, ...]] = ("<|im_end|>",)
    special: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        head = _wrap_turn("system", system, learn=False) if system else []
        return [*head, *(span for turn in turns for span in self.format_turn(turn))]

    def format_turn(self, message: Message) -> list[Span]:
        """One message of the user or the assistant."""
        return _wrap_turn(message.role, message.parts, learn=message.is_learned)

    def open_answer(self) -> list[Span]:
        return [Span("<|im_start|>assistant\n")]


def _wrap_turn(role: str, parts: Sequence[Part], *, learn: bool) -> list[Span]:
    return [Span(f"<|im_start|>{role}\n"), *make_spans(parts, learn=learn), Span("<|im_end|>", learn), Span("\n")]


templates.preset("qwen_1_5", of="chatml", system="You are a helpful assistant.")
templates.preset("qwen_2", of="chatml", system="You are a helpful assistant.")
templates.preset("qwen_2_5", of="chatml", system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
