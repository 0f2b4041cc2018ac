from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message
from mmblocks.templates.message_spans import make_spans, split_system


@dataclass(frozen=True)
class NamedTurns:
    """A chat in which a name opens each turn: system text, question turn, answer turn, each with its own end.

    Learned: the answer with the space before it (generation begins behind the name and its colon) and its end.
    """

    system: str | None
    around_visuals: tuple[str, str] = ("", "")
    user_name: ClassVar[str]
    assistant_name: ClassVar[str]
    separator: ClassVar[str]
    """The end of the system text and of questions."""
    stop: ClassVar[tuple[str]]

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        head = [*make_spans(system, learn=False), Span(self.separator)] if system else []
        return [*head, *(span for turn in turns for span in self.format_turn(turn))]

    def format_turn(self, message: Message) -> list[Span]:
        """One message of the user or the assistant."""
        parts = make_spans(message.parts, learn=message.is_learned, around=self.around_visuals)
        if message.role == "user":
            return [Span(f"{self.user_name}: "), *parts, Span(self.separator)]
        return [*self.open_answer(), Span(" ", message.learn), *parts, Span(self.stop[0], message.learn)]

    def open_answer(self) -> list[Span]:
        return [Span(f"{self.assistant_name}:")]


@templates.register(
    "vicuna_v1",
    source="https://lmsys.org/blog/2023-03-30-vicuna/",
    verified_against="LLaVA-NeXT (golden conversations, labels)",
)
@dataclass(frozen=True)
class Vicuna(NamedTurns):
    """Vicuna's one-line chat, used by LLaVA 1.5 (called v1 there): system USER: text ASSISTANT: answer</s>.

    Learned: the answer with the space before it (a prompt ends at "ASSISTANT:") and its </s>.
    `around_visuals` is written before and after each image or video.
    """

    system: str | None = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    user_name: ClassVar[str] = "USER"
    assistant_name: ClassVar[str] = "ASSISTANT"
    separator: ClassVar[str] = " "
    stop: ClassVar[tuple[str]] = ("</s>",)
    special: ClassVar[tuple[str, ...]] = ("</s>",)


@templates.register(
    "llava_v0", source="https://arxiv.org/abs/2304.08485", verified_against="LLaVA-NeXT (golden conversations, labels)"
)
@dataclass(frozen=True)
class LlavaV0(NamedTurns):
    """The first LLaVA's chat, every piece closed by ###: system###Human: text###Assistant: answer###.

    Learned: the answer with the space before it and its ###. `around_visuals` is written before and after each image or
    video.
    """

    system: str | None = (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    )
    user_name: ClassVar[str] = "Human"
    assistant_name: ClassVar[str] = "Assistant"
    separator: ClassVar[str] = "###"
    stop: ClassVar[tuple[str]] = ("###",)
    special: ClassVar[tuple[str, ...]] = ()


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
