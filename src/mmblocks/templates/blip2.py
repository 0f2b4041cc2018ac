from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Visual


@templates.register(
    "blip2",
    source="https://arxiv.org/abs/2301.12597",
    verified_against="transformers Blip2Processor, InstructBlipProcessor",
)
@dataclass(frozen=True)
class Blip2:
    """The bare prompt of BLIP-2 and InstructBLIP: all images and videos, the text tokenizer's BOS, then the text.

    There are no roles: messages follow each other with a space between. Learned: the answer with that space, and its
    `end`, which is a newline beside OPT and </s> beside Vicuna.
    """

    text_tokenizer: Callable[[], Any] | None = None
    end: str = "\n"
    special: ClassVar[tuple[str, ...]] = ()

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.end,)

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        visuals = [Span(part) for message in messages for part in message.parts if isinstance(part, Visual)]
        # The BOS stands behind them, where the text tokenizer puts one in front of every text.
        tokenizer = self.text_tokenizer() if self.text_tokenizer is not None else None
        if tokenizer is not None and tokenizer.bos_token is not None:
            empty_text = tokenizer("", add_special_tokens=True)["input_ids"]
            visuals += [Span(tokenizer.bos_token)] if empty_text[:1] == [tokenizer.bos_token_id] else []
        texts: list[Span] = []
        for message in messages:
            learn = message.is_learned
            spans = [
                Span(part.text, learn, literal=True)
                for part in message.parts
                if not isinstance(part, Visual) and part.text
            ]
            if spans and texts and not str(texts[-1].content)[-1:].isspace():
                texts.append(Span(" ", learn))
            texts += [*spans, Span(self.end, learn)] if message.role == "assistant" else spans
        return [*visuals, *texts]

    def open_answer(self) -> list[Span]:
        return []
