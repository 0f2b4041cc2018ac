from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Part, Text
from mmblocks.templates.message_spans import make_spans, split_system


@templates.register(
    "turns",
    source="https://huggingface.co/mosaicml/mpt-30b-chat",
    verified_against="LLaVA-NeXT (golden conversations, labels)",
)
@dataclass(frozen=True)
class Turns:
    """Any chat of turns: for each role its head, the text, `end`, and `after`.

    Learned: the answer and its `end`; `after` is not, since generation has stopped before it. Without a `system_head`
    the system text begins the first message of the user, with an empty line after it (as Gemma 3 has it).
    `special` are the texts that must each be one token.
    """

    system: str | None = None
    system_head: str | None = "<|im_start|>system\n"
    user_head: str = "<|im_start|>user\n"
    assistant_head: str = "<|im_start|>assistant\n"
    end: str = "<|im_end|>"
    after: str = ""
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.end,)

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        system, turns = split_system(messages, self.system)
        if system and self.system_head is None:
            first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
            if first is not None:
                begun = replace(turns[first], parts=(*system, Text("\n\n"), *turns[first].parts))
                turns = (*turns[:first], begun, *turns[first + 1 :])
            system = ()
        head = self._wrap_turn(str(self.system_head), system, learn=False) if system else []
        return [*head, *(span for turn in turns for span in self.format_turn(turn))]

    def format_turn(self, message: Message) -> list[Span]:
        """One message of the user or the assistant."""
        head = self.assistant_head if message.role == "assistant" else self.user_head
        return self._wrap_turn(head, message.parts, learn=message.is_learned)

    def open_answer(self) -> list[Span]:
        return [Span(self.assistant_head)]

    def _wrap_turn(self, head: str, parts: Sequence[Part], *, learn: bool) -> list[Span]:
        after = [Span(self.after)] if self.after else []
        return [Span(head), *make_spans(parts, learn=learn), Span(self.end, learn), *after]


templates.preset(
    "mpt",
    of="turns",
    system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
)
templates.preset("chatml_direct", of="turns", system="Answer the questions.")
templates.preset("mistral_direct", of="chatml_direct")
templates.preset(
    "mistral_orca",
    of="turns",
    system=(
        "You are MistralOrca, a large language model trained by Alignment Lab AI. "
        "Write out your reasoning step-by-step to be sure you get the right answers!"
    ),
)
templates.preset(
    "mistral_zephyr",
    of="turns",
    system="You are a helpful AI assistant.",
    system_head="<|system|>\n",
    user_head="<|user|>\n",
    assistant_head="<|assistant|>\n",
    end="</s>",
    special=("</s>",),
)
templates.preset(
    "gemma_instruct",
    of="turns",
    system_head=None,
    user_head="<start_of_turn>user\n",
    assistant_head="<start_of_turn>model\n",
    end="<end_of_turn>",
    after="\n",
    special=("<start_of_turn>", "<end_of_turn>"),
)
