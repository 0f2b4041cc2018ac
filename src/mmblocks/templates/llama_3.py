from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Part
from mmblocks.templates.message_spans import make_spans, split_system, strip_ends


@templates.register(
    "llama_3", source="https://arxiv.org/abs/2407.21783", verified_against="LLaVA-NeXT (golden conversations, labels)"
)
@dataclass(frozen=True)
class Llama3:
    """Llama 3 turns: a role header, two newlines, text without outer white space, <|eot_id|>.

    Learned: the answer and its <|eot_id|>. The text begins with <|begin_of_text|> itself.
    """

    system: str | None = None
    stop: ClassVar[tuple[str, ...]] = ("<|eot_id|>",)
    special: ClassVar[tuple[str, ...]] = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        head = _wrap_turn("system", system, learn=False) if system else []
        return [Span("<|begin_of_text|>"), *head, *(span for turn in turns for span in self.format_turn(turn))]

    def format_turn(self, message: Message) -> list[Span]:
        """One message of the user or the assistant."""
        return _wrap_turn(message.role, message.parts, learn=message.is_learned)

    def open_answer(self) -> list[Span]:
        return [_make_header("assistant")]


def _make_header(role: str) -> Span:
    return Span(f"<|start_header_id|>{role}<|end_header_id|>\n\n")


def _wrap_turn(role: str, parts: Sequence[Part], *, learn: bool) -> list[Span]:
    return [_make_header(role), *make_spans(strip_ends(parts), learn=learn), Span("<|eot_id|>", learn)]


templates.preset(
    "llava_llama_3",
    of="llama_3",
    system=(
        "You are a helpful language and vision assistant. You are able to understand the visual content "
        "that the user provides, and assist the user with a variety of tasks using natural language."
    ),
)
