"""Which tokens LLaVA-NeXT's own preprocessing trains, for runs that must follow it to the letter.

Facts of https://github.com/LLaVA-VL/LLaVA-NeXT (llava/train/train.py, preprocess and preprocess_plain, _qwen, _llama3,
_llama_2, _mpt, _gemma, _v1): answers of ChatML and Llama 3 are trained with their role headers, some ids are trained
wherever they stand, the system text is a constant, a conversation's first message is dropped when it is an answer (not
in v0), and v0 counts tokens of its pieces so that its marks drift.
Not followed: a sample whose lengths the original miscounts (v1, mpt without BOS) loses all its targets there (a warning
is printed).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Text, Visual
from mmblocks.errors import ConfigError, DataError
from mmblocks.templates.chatml import ChatML
from mmblocks.templates.llama_2 import Llama2
from mmblocks.templates.llama_3 import Llama3
from mmblocks.templates.message_spans import make_spans
from mmblocks.templates.plain import PlainCaption
from mmblocks.templates.turns import Turns
from mmblocks.templates.vicuna import LlavaV0, Vicuna

CHATML_TEXTS = ("<|im_start|>", "<|im_end|>", "\n")
LLAMA_3_TEXTS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def make_original_spans(
    template: Any, messages: Sequence[Message], text_tokenizer: Any
) -> tuple[list[Span], frozenset[int]]:
    """Spans with the original's marks, and the ids that it trains wherever they stand."""
    if isinstance(template, PlainCaption):
        return template.to_spans(messages), frozenset()
    if isinstance(template, LlavaV0):
        return _mask_by_counting(_make_v0_pieces(template, messages), text_tokenizer), frozenset()
    turns = _drop_first_answer(messages)
    if isinstance(template, Vicuna | Llama2):
        return template.to_spans(turns), frozenset()
    if isinstance(template, Turns):
        return _with_after(template.to_spans(turns), template.after), frozenset()
    if isinstance(template, ChatML):
        fixed = replace(template, system=templates["qwen_1_5"].settings["system"])
        return _learn_whole_answers(fixed, turns), _find_token_ids(CHATML_TEXTS, text_tokenizer)
    if isinstance(template, Llama3):
        fixed = replace(template, system=templates["llava_llama_3"].settings["system"])
        return _learn_whole_answers(fixed, turns), _find_token_ids(LLAMA_3_TEXTS, text_tokenizer)
    raise ConfigError(
        f"targets='original' is known for LLaVA's own templates, not for {type(template).__name__}; use targets='answers'."
    )


def _drop_first_answer(messages: Sequence[Message]) -> list[Message]:
    at = 1 if messages and messages[0].role == "system" else 0
    dropped = messages[at : at + 1] if messages[at : at + 1] and messages[at].role == "assistant" else ()
    if any(isinstance(part, Visual) for message in dropped for part in message.parts):
        raise DataError(
            f"message {at} is an answer with a visual; targets='original' drops a first message that is an answer, use 'answers'."
        )
    return [*messages[:at], *messages[at + len(dropped) :]]


def _learn_whole_answers(template: ChatML | Llama3, messages: Sequence[Message]) -> list[Span]:
    system = [m for m in messages[:1] if m.role == "system"]
    spans = template.to_spans(system)
    for message in messages[len(system) :]:
        turn = template.format_turn(message)
        spans += [replace(s, learn=isinstance(s.content, str)) for s in turn] if message.is_learned else turn
    return spans


def _find_token_ids(texts: Sequence[str], text_tokenizer: Any) -> frozenset[int]:
    found = [text_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return frozenset(ids[0] for ids in found if len(ids) == 1)


def _with_after(spans: Sequence[Span], after: str) -> list[Span]:
    """What stands after the end of an answer is trained with it (Gemma's newline)."""
    return [
        replace(span, learn=True) if i and after and span.content == after and spans[i - 1].learn else span
        for i, span in enumerate(spans)
    ]


# v0 -------------------------------------------------------------------------------------------------------------------

UNMASKED_TOKENS = 2
"""Tokens at the beginning of a human turn that v0 leaves unmasked, meant for its ###."""


def _make_v0_pieces(template: LlavaV0, messages: Sequence[Message]) -> list[list[Span]]:
    """The header and the turns of v0's training text, which is not that of its chats; `learn` marks answers."""
    told = messages[0].parts if messages and messages[0].role == "system" else (Text(template.system or ""),)
    speakers = {"user": "Human", "assistant": "Assistant"}
    pieces = [[*make_spans(told, learn=False), Span("\n\n")]]
    for message in messages:
        if message.role in speakers:
            said = make_spans(message.parts, learn=False, around=template.around_visuals)
            pieces.append([Span(f"### {speakers[message.role]}: "), *said, Span("\n")])
            if message.is_learned:
                pieces[-1] = [replace(span, learn=isinstance(span.content, str)) for span in pieces[-1]]
    return [*pieces, [Span("### ")]]


def _mask_by_counting(pieces: Sequence[Sequence[Span]], text_tokenizer: Any) -> list[Span]:
    """Marks set by counting the tokens of each piece alone, each with its BOS, as v0 does: they drift by one per piece."""
    spans = [span for piece in pieces for span in piece]
    if len(pieces) < 3:
        return spans
    header, *turns = pieces[:-1]
    edge = _count_tokens(header, text_tokenizer)
    masked = set(range(edge))
    for turn in turns:
        end = edge + _count_tokens(turn, text_tokenizer)
        masked |= set() if any(span.learn for span in turn) else set(range(edge + UNMASKED_TOKENS, end))
        edge = end
    return list(_marked(spans, masked, text_tokenizer))


def _count_tokens(piece: Sequence[Span], text_tokenizer: Any) -> int:
    """Tokens of a piece with its BOS, a visual counted as one."""
    bos = len(text_tokenizer("", add_special_tokens=True)["input_ids"])
    return bos + sum(len(encoded) for encoded in _split_runs(piece, text_tokenizer))


def _marked(spans: Sequence[Span], masked: set[int], text_tokenizer: Any) -> Iterator[Span]:
    """The same text and visuals, learned where the token's number is not masked."""
    at = len(text_tokenizer("", add_special_tokens=True)["input_ids"])
    for content in _split_runs(spans, text_tokenizer):
        if isinstance(content, _VisualToken):
            yield Span(content.visual)
        else:
            starts = [0, *(start for start, _ in content.offsets[1:]), len(content.text)]
            for i in range(len(content)):
                literal = content.is_literal(starts[i])
                yield Span(content.text[starts[i] : starts[i + 1]], at + i not in masked, literal)
        at += len(content)


class _VisualToken:
    """A visual, one token long here."""

    def __init__(self, visual: Visual) -> None:
        self.visual = visual

    def __len__(self) -> int:
        return 1


class _TextRun:
    """Text between visuals and the characters that each of its tokens covers."""

    def __init__(self, spans: Sequence[Span], text_tokenizer: Any) -> None:
        texts = [str(span.content) for span in spans]
        self.text = "".join(texts)
        self._spans, self._ends = spans, list(accumulate(map(len, texts)))
        encoding = text_tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        self.offsets: list[tuple[int, int]] = encoding["offset_mapping"]

    def is_literal(self, at: int) -> bool:
        """Whether a character was written by people."""
        return self._spans[bisect_right(self._ends, at)].literal

    def __len__(self) -> int:
        return len(self.offsets)


def _split_runs(spans: Sequence[Span], text_tokenizer: Any) -> Iterator[_TextRun | _VisualToken]:
    for is_text, group in groupby(spans, key=lambda span: isinstance(span.content, str)):
        if is_text:
            yield _TextRun(list(group), text_tokenizer)
        else:
            yield from (_VisualToken(span.content) for span in group if isinstance(span.content, Visual))
