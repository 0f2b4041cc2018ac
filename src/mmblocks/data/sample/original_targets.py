"""Which tokens LLaVA-NeXT's own preprocessing trains, for runs that must reproduce it exactly.

Facts of https://github.com/LLaVA-VL/LLaVA-NeXT (llava/train/train.py, preprocess and preprocess_plain, _qwen, _llama3,
_llama_2, _mpt, _gemma, _v1): answers of ChatML and Llama 3 are trained with their role headers, some ids are trained
wherever they stand, the system text is a constant, a conversation's first message is dropped when it is an answer (not
in v0), and v0 counts tokens of its pieces so that its masks drift.
Not followed: a sample whose lengths the original miscounts (v1, mpt without BOS) loses all its targets there (a warning
is printed).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    template: Any, messages: Sequence[Message], text_tokenizer: Callable[..., Mapping[str, Any]]
) -> tuple[list[Span], frozenset[int]]:
    """Spans learned as the original learns them, and the ids that it trains wherever they stand."""
    if isinstance(template, PlainCaption):
        return template.to_spans(messages), frozenset()
    if isinstance(template, LlavaV0):
        return _mask_by_counting(template, messages, text_tokenizer), frozenset()
    first = 1 if messages and messages[0].role == "system" else 0
    turns = list(messages)
    if messages[first:] and messages[first].role == "assistant":
        dropped = turns.pop(first)
        if any(isinstance(part, Visual) for part in dropped.parts):
            raise DataError(
                f"message {first} is an answer with a visual; targets='original' drops a first message that is an answer, "
                "use 'answers'."
            )
    if isinstance(template, Vicuna | Llama2):
        return template.to_spans(turns), frozenset()
    if isinstance(template, Turns):
        spans, after = template.to_spans(turns), template.after
        for i in range(
            1, len(spans) if after else 0
        ):  # what stands after an answer is trained with it: Gemma's newline
            if spans[i].content == after and spans[i - 1].learn:
                spans[i] = replace(spans[i], learn=True)
        return spans, frozenset()
    if isinstance(template, ChatML):
        fixed = replace(template, system=templates["qwen_1_5"].settings["system"])
        return _learn_whole_answers(fixed, turns), _find_token_ids(CHATML_TEXTS, text_tokenizer)
    if isinstance(template, Llama3):
        fixed = replace(template, system=templates["llava_llama_3"].settings["system"])
        return _learn_whole_answers(fixed, turns), _find_token_ids(LLAMA_3_TEXTS, text_tokenizer)
    raise ConfigError(
        f"targets='original' is known for LLaVA's own templates, not for {type(template).__name__}; use targets='answers'."
    )


def _learn_whole_answers(template: ChatML | Llama3, messages: Sequence[Message]) -> list[Span]:
    system = [m for m in messages[:1] if m.role == "system"]
    spans = template.to_spans(system)
    for message in messages[len(system) :]:
        turn = template.format_turn(message)
        spans += [replace(s, learn=isinstance(s.content, str)) for s in turn] if message.is_learned else turn
    return spans


def _find_token_ids(texts: Sequence[str], text_tokenizer: Callable[..., Mapping[str, Any]]) -> frozenset[int]:
    encodings = (text_tokenizer(t, add_special_tokens=False, return_offsets_mapping=False) for t in texts)
    return frozenset(encoding["input_ids"][0] for encoding in encodings if len(encoding["input_ids"]) == 1)


# v0 -------------------------------------------------------------------------------------------------------------------

UNMASKED_TOKENS = 2
"""Tokens at the beginning of a human turn that v0 leaves unmasked, meant for its ###."""


def _mask_by_counting(
    template: LlavaV0, messages: Sequence[Message], text_tokenizer: Callable[..., Mapping[str, Any]]
) -> list[Span]:
    """v0's training text, which is not that of its chats, learned where v0 learns it.

    v0 counts the tokens of each piece (header or turn) alone, each with its BOS, so its masks drift by one per piece.
    """
    system = messages[0].parts if messages and messages[0].role == "system" else (Text(template.system or ""),)
    header = [*make_spans(system, learn=False), Span("\n\n")]
    turns, is_answer, speakers = [], [], {"user": "Human", "assistant": "Assistant"}
    for message in messages:
        if message.role in speakers:
            content = make_spans(message.parts, learn=False, around=template.around_visuals)
            turns.append([Span(f"### {speakers[message.role]}: "), *content, Span("\n")])
            is_answer.append(message.is_learned)
    spans = [*header, *(span for turn in turns for span in turn), Span("### ")]
    if not turns:
        return spans
    num_bos = len(text_tokenizer("", add_special_tokens=True, return_offsets_mapping=False)["input_ids"])

    def count_tokens(piece: Sequence[Span]) -> int:
        return num_bos + sum(len(run) for run in _split_runs(piece, text_tokenizer))

    edge = count_tokens(header)
    masked = set(range(edge))
    for turn, learned in zip(turns, is_answer, strict=True):
        end = edge + count_tokens(turn)
        masked |= set() if learned else set(range(edge + UNMASKED_TOKENS, end))
        edge = end
    found, at = [], num_bos
    for run in _split_runs(spans, text_tokenizer):
        if isinstance(run, _VisualToken):
            found.append(Span(run.visual))
        else:
            starts = [0, *(start for start, _ in run.offsets[1:]), len(run.text)]
            for i in range(len(run)):
                text = run.text[starts[i] : starts[i + 1]]
                found.append(Span(text, at + i not in masked, run.is_literal(starts[i])))
        at += len(run)
    return found


class _VisualToken:
    """A visual, one token long here."""

    def __init__(self, visual: Visual) -> None:
        self.visual = visual

    def __len__(self) -> int:
        return 1


class _TextRun:
    """Text between visuals and the characters that each of its tokens covers."""

    def __init__(self, spans: Sequence[Span], text_tokenizer: Callable[..., Mapping[str, Any]]) -> None:
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


def _split_runs(
    spans: Sequence[Span], text_tokenizer: Callable[..., Mapping[str, Any]]
) -> Iterator[_TextRun | _VisualToken]:
    for is_text, group in groupby(spans, key=lambda span: isinstance(span.content, str)):
        if is_text:
            yield _TextRun(list(group), text_tokenizer)
        else:
            yield from (_VisualToken(span.content) for span in group if isinstance(span.content, Visual))
