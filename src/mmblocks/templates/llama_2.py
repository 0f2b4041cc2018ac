from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message
from mmblocks.templates.message_spans import make_spans, split_system


@templates.register(
    "llama_2", source="https://arxiv.org/abs/2307.09288", verified_against="LLaVA-NeXT (golden conversations, labels)"
)
@dataclass(frozen=True)
class Llama2:
    """Llama 2 and Mistral turns: [INST] text [/INST] answer </s>, the system text inside the first instruction.

    Learned: the answer with the spaces around it and its </s>. `between` stands before every later instruction;
    the text tokenizer writes the first <s>. `around_visuals` is written before and after each image or video.
    """

    system: str | None = (
        "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
        "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
        "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
        "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
        "something not correct. If you don't know the answer to a question, please don't share false information."
    )
    between: str = "<s>"
    around_visuals: tuple[str, str] = ("", "")
    stop: ClassVar[tuple[str, ...]] = ("</s>",)

    @property
    def special(self) -> tuple[str, ...]:
        return (self.between, *self.stop) if self.between else self.stop

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        head = [Span("<<SYS>>\n"), *make_spans(system, learn=False), Span("\n<</SYS>>\n\n")] if system else []
        spans: list[Span] = []
        for message in turns:
            learn = message.is_learned
            parts = make_spans(message.parts, learn=learn, around=self.around_visuals)
            if message.role == "assistant":
                spans += [Span(" ", learn), *parts, Span(" </s>", learn)]
            else:
                spans += [Span(f"{self.between}[INST] " if spans else "[INST] "), *head, *parts, Span(" [/INST]")]
                head = []
        return spans

    def open_answer(self) -> list[Span]:
        return []


templates.preset("mistral_instruct", of="llama_2", system=None, between="")
templates.preset("llava_mistral_instruct", of="mistral_instruct")
templates.preset(
    "llava_llama_2",
    of="llama_2",
    system=(
        "You are a helpful language and vision assistant. You are able to understand the visual content "
        "that the user provides, and assist the user with a variety of tasks using natural language."
    ),
)
templates.preset(
    "llava_llama_2_simple", of="llama_2", system="Answer the questions about the visual content that the user provides."
)
templates.preset(
    "llava_llama_2_mmtag",
    of="llama_2",
    around_visuals=("<Image>", "</Image>"),
    system=(
        "Answer the questions about the visual content that the user provides."
        "The visual content will be provided with the following format: <Image>visual content</Image>."
    ),
)
