"""A conversation and its plans to ids, targets and visual positions: labels right by construction.

Text between two visuals is tokenised in one piece, so its ids are those of the whole prompt; a token is learned when
the span it comes from is (see `mmblocks.templates.span_tokenizer`). The inline text that a plan puts between the rows of a
visual is tokenised with the text around it, and never learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmblocks.batch import IGNORE
from mmblocks.components import ChatTemplate, Span
from mmblocks.conversation import Conversation, Text
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.original_targets import make_original_spans
from mmblocks.errors import DataError
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import RoutedPlan
from mmblocks.templates.span_tokenizer import SpanTokenizer, TextTokenizer, make_prompt_spans

Targets = Literal["answers", "original"]
Overlong = Literal["raise", "skip", "cut_answer"]
"""What happens to a sample over the limit of tokens."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate without its other half: JSON can write one (a text that was cut in the middle of an emoji), UTF-8 cannot."""


class NothingTrained(DataError):
    """A sample has no token to learn."""


class TooLong(DataError):
    """A sample has more tokens than the limit."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One conversation, ready to be packed.

    input_ids, targets: (tokens,) int64; `targets[i]` is the id that row i must predict, or IGNORE.
    visual_positions: (visual tokens,) int64, the rows of `input_ids` that visual tokens replace, in order; the rows of one
        visual adjoin unless its plan has inline text between them.
    plans: one per visual, in order. num_cut: tokens cut from the end of its last answer to meet the limit.
    """

    input_ids: Tensor
    targets: Tensor
    visual_positions: Tensor
    plans: tuple[RoutedPlan, ...]
    origin: str
    num_cut: int = 0
    __repr__ = format_by_shape

    def __len__(self) -> int:
        return self.input_ids.numel()

    @property
    def num_labelled(self) -> int:
        return int((self.targets != IGNORE).sum())


def encode_for_training(
    conversation: Conversation,
    plans: Sequence[RoutedPlan],
    *,
    template: ChatTemplate,
    text_tokenizer: TextTokenizer,
    placeholder_id: int,
    max_tokens: int | None = None,
    targets: Targets = "answers",
    overlong: Overlong = "raise",
) -> Encoded:
    """Ids of a conversation and what each row must predict.

    targets="answers" trains what the model has to write. targets="original" trains what LLaVA-NeXT's own
    preprocessing leaves unmasked (role headers, newlines everywhere, a fixed system text; see `original_targets`).

    Raises `TooLong` over `max_tokens`, unless overlong="cut_answer" and the end of the last answer can be cut so that one
    of its tokens is still learned: never a question, never a visual.
    """
    _check_plans(conversation, plans)
    with name_errors(conversation.origin):
        if targets == "original":
            spans, everywhere = make_original_spans(template, conversation.messages, text_tokenizer)
        else:
            spans, everywhere = template.to_spans(conversation.messages), frozenset()
        rows = _TokenRows([], [], [])
        rows.append_spans(spans, plans, template, text_tokenizer, placeholder_id, everywhere)
    if not any(span.learn for span in spans) or not any(rows.learned[1:]):
        raise NothingTrained(
            f"{conversation.origin}: none of its {len(rows.ids)} tokens is an answer to train on; "
            "add a message of the role 'assistant', or let one of them be learned."
        )
    if overlong == "cut_answer" and max_tokens is not None and conversation.messages[-1].is_learned:
        return _make_encoded(conversation, plans, rows.cut_to_limit(max_tokens), max_tokens, len(rows.ids))
    return _make_encoded(conversation, plans, rows, max_tokens)


def encode_prompt(
    conversation: Conversation,
    plans: Sequence[RoutedPlan],
    *,
    template: ChatTemplate,
    text_tokenizer: TextTokenizer,
    placeholder_id: int,
    max_tokens: int | None = None,
) -> Encoded:
    """Ids of a conversation up to where the model's answer begins; every target is IGNORE."""
    _check_plans(conversation, plans)
    if not conversation.messages or conversation.messages[-1].role == "assistant":
        raise DataError(
            f"{conversation.origin}: there is nothing to answer; a prompt ends with a message of the role 'user'."
        )
    with name_errors(conversation.origin):
        spans = make_prompt_spans(template, conversation.messages)
        rows = _TokenRows([], [], [])
        rows.append_spans(spans, plans, template, text_tokenizer, placeholder_id, frozenset())
    rows.learned[:] = [False] * len(rows.ids)
    return _make_encoded(conversation, plans, rows, max_tokens)


def _check_plans(conversation: Conversation, plans: Sequence[RoutedPlan]) -> None:
    if len(plans) != len(conversation.visuals):
        raise DataError(
            f"{conversation.origin}: {len(plans)} plans for {len(conversation.visuals)} visuals; "
            "make one plan per visual, in their order."
        )
    for number, message in enumerate(conversation.messages):
        for text in (part.text if isinstance(part, Text) else part.note for part in message.parts):
            if (half := _HALF_CHARACTER.search(text)) is not None:
                raise DataError(
                    f"{conversation.origin}: message {number} ({message.role}) holds half of a character, {half[0]!a} at "
                    f"{half.start()}, which no text tokenizer reads; write the character whole, or remove it."
                )


def _make_encoded(
    conversation: Conversation,
    plans: Sequence[RoutedPlan],
    rows: _TokenRows,
    max_tokens: int | None,
    uncut: int | None = None,
) -> Encoded:
    """Rows within the limit as tensors. uncut: their number before an answer was cut, where one was."""
    if max_tokens is not None and len(rows.ids) > max_tokens:
        raise TooLong(
            f"{conversation.origin}: {len(rows.ids)} tokens ({len(rows.visual)} of them visual), the limit is "
            f"{max_tokens}; shorten the conversation, give its visuals fewer tokens, or raise max_tokens."
        )
    ids, learned = np.array(rows.ids, dtype=np.int64), np.array(rows.learned, dtype=bool)
    targets = np.full_like(ids, IGNORE)
    targets[:-1] = np.where(learned[1:], ids[1:], IGNORE)
    return Encoded(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(np.array(rows.visual, dtype=np.int64)),  # a third of the time of torch.tensor(list)
        tuple(plans),
        conversation.origin,
        0 if uncut is None else uncut - len(rows.ids),
    )


@dataclass(frozen=True, slots=True)
class _TokenRows:
    """Token rows: their ids, whether each is learned, and which are visual."""

    ids: list[int]
    learned: list[bool]
    visual: list[int]

    def append_spans(
        self,
        spans: Sequence[Span],
        plans: Sequence[RoutedPlan],
        template: ChatTemplate,
        text_tokenizer: TextTokenizer,
        placeholder_id: int,
        everywhere: frozenset[int],
    ) -> None:
        """`everywhere` holds text ids that are learned wherever they stand, except in inline texts."""
        tokenizer = SpanTokenizer(text_tokenizer, template)
        self.ids.extend(_find_bos(spans, text_tokenizer))
        self.learned.extend(token in everywhere for token in self.ids)
        for is_text, group in groupby(unfold_plans(spans, plans), key=lambda piece: isinstance(piece, Span)):
            if not is_text:
                num_tokens = sum(piece for piece in group if isinstance(piece, int))
                self.visual.extend(range(len(self.ids), len(self.ids) + num_tokens))
                self.ids.extend([placeholder_id] * num_tokens)
                self.learned.extend([False] * num_tokens)
                continue
            run = [piece for piece in group if isinstance(piece, Span) and piece.content]
            if run and run[0].content == text_tokenizer.bos_token and not run[0].literal:
                self.ids.append(
                    text_tokenizer.bos_token_id
                )  # the text behind it is tokenised on its own, as behind `ids`
                self.learned.append(False)
                run = run[1:]
            for token, span in tokenizer.to_ids(run, behind_visual=bool(self.visual)):
                self.ids.append(token)
                self.learned.append(span.learn or (token in everywhere and not isinstance(span, _InlineText)))

    def cut_to_limit(self, limit: int) -> _TokenRows:
        """The first `limit` rows, where all others belong to the end of the last answer; else all rows.

        That end is the last run of learned rows, of which one stays, and what the template writes behind it.
        """
        last = max(row for row, learned in enumerate(self.learned) if learned)
        first = next((row + 1 for row in range(last, 0, -1) if not self.learned[row]), 1)
        if not first < limit < len(self.ids) or (self.visual and self.visual[-1] >= limit):
            return self
        return _TokenRows(self.ids[:limit], self.learned[:limit], self.visual)


@dataclass(frozen=True, slots=True)
class _InlineText(Span):
    """Text that a plan puts between visual rows."""


def unfold_plans(spans: Sequence[Span], plans: Sequence[RoutedPlan]) -> Iterator[Span | int]:
    """Text spans, and in place of each visual its numbers of rows and its inline texts."""
    unused = iter(plans)
    for span in spans:
        if isinstance(span.content, str):
            yield span
        else:
            note = span.content.note
            for piece in next(unused).plan.split_into_pieces():
                yield _InlineText(piece, literal=bool(note) and note in piece) if isinstance(piece, str) else piece


def _find_bos(spans: Sequence[Span], text_tokenizer: TextTokenizer) -> list[int]:
    """The BOS that the tokenizer adds to every text, unless the template writes it itself, perhaps behind the visuals."""
    bos = text_tokenizer.bos_token
    added = list(text_tokenizer("", add_special_tokens=True, return_offsets_mapping=False)["input_ids"])
    if bos is None or added[:1] != [text_tokenizer.bos_token_id]:
        return []
    first = next((span for span in spans if isinstance(span.content, str)), Span(""))
    is_in_template = not first.literal and str(first.content).startswith(bos)
    return [] if is_in_template else added[:1]
