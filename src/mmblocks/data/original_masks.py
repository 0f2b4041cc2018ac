"""Which tokens LLaVA-NeXT's own preprocessing trains, for runs that must follow it to the letter.

Facts of https://github.com/LLaVA-VL/LLaVA-NeXT (llava/train/train.py, preprocess_qwen, _llama3, _v1, _plain):
answers of ChatML and Llama 3 are trained with their role headers, some ids are trained wherever they stand, the system
text is a constant, and a conversation's first message is dropped when it is an answer.
Not followed: a v1 sample whose lengths the original miscounts loses all its targets there (a warning is printed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Visual
from mmblocks.errors import ConfigError, DataError
from mmblocks.templates.chatml import ChatML
from mmblocks.templates.llama_3 import Llama3
from mmblocks.templates.plain import Plain
from mmblocks.templates.vicuna import Vicuna

CHATML_TEXTS = ("<|im_start|>", "<|im_end|>", "\n")
LLAMA_3_TEXTS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def original_spans(
    template: Any, messages: Sequence[Message], text_tokenizer: Any
) -> tuple[list[Span], frozenset[int]]:
    """Spans with the original's marks, and the ids that it trains wherever they stand."""
    if isinstance(template, Plain):
        return template.spans(messages), frozenset()
    turns = _from_first_question(messages)
    if isinstance(template, Vicuna):
        return template.spans(turns), frozenset()
    if isinstance(template, ChatML):
        fixed = replace(template, system=templates["qwen_1_5"].settings["system"])
        return _whole_answers(fixed, turns), _ids(CHATML_TEXTS, text_tokenizer)
    if isinstance(template, Llama3):
        fixed = replace(template, system=templates["llava_llama_3"].settings["system"])
        return _whole_answers(fixed, turns), _ids(LLAMA_3_TEXTS, text_tokenizer)
    raise ConfigError(
        f"targets='original' is known for the templates chatml, llama_3, plain and vicuna_v1, not for "
        f"{type(template).__name__}; use targets='answers'."
    )


def _from_first_question(messages: Sequence[Message]) -> list[Message]:
    at = 1 if messages and messages[0].role == "system" else 0
    dropped = messages[at : at + 1] if messages[at : at + 1] and messages[at].role == "assistant" else ()
    if any(isinstance(part, Visual) for message in dropped for part in message.parts):
        raise DataError(
            f"message {at} is an answer with a visual; targets='original' drops a first message that is an answer, use 'answers'."
        )
    return [*messages[:at], *messages[at + len(dropped) :]]


def _whole_answers(template: ChatML | Llama3, messages: Sequence[Message]) -> list[Span]:
    system = [m for m in messages[:1] if m.role == "system"]
    spans = template.spans(system)
    for message in messages[len(system) :]:
        turn = template.turn(message)
        spans += [replace(s, learn=isinstance(s.content, str)) for s in turn] if message.role == "assistant" else turn
    return spans


def _ids(texts: Sequence[str], text_tokenizer: Any) -> frozenset[int]:
    found = [text_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return frozenset(ids[0] for ids in found if len(ids) == 1)
