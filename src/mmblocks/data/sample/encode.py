"""A conversation and its plans to ids, targets and visual positions: labels right by construction.

Text between two visuals is tokenised in one piece, so its ids are those of the whole prompt; a token is learned when
the span it comes from is (see `mmblocks.templates.span_tokenizer`). The inline text that a plan puts between the rows of a
visual is tokenised with the text around it, and never learned.

Visual rows are numbers (`TokenRuns`) until ids are wanted, so that samples are counted by the rules they are encoded by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    """Ids of a conversation and what each row must predict: `make_training_runs`, expanded."""
    runs = make_training_runs(
        conversation,
        plans,
        template=template,
        text_tokenizer=text_tokenizer,
        max_tokens=max_tokens,
        targets=targets,
        overlong=overlong,
    )
    return runs.expand(placeholder_id)


def make_training_runs(
    conversation: Conversation,
    plans: Sequence[RoutedPlan],
    *,
    template: ChatTemplate,
    text_tokenizer: TextTokenizer,
    max_tokens: int | None = None,
    targets: Targets = "answers",
    overlong: Overlong = "raise",
) -> TokenRuns:
    """The rows of a conversation and which of them are learned; no row is made for a visual token.

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
        runs = _tokenize_spans(conversation, spans, plans, template, text_tokenizer, everywhere)
    if not any(span.learn for span in spans) or not runs.num_labelled:
        raise NothingTrained(
            f"{conversation.origin}: none of its {len(runs)} tokens is an answer to train on; "
            "add a message of the role 'assistant', or let one of them be learned."
        )
    if overlong == "cut_answer" and max_tokens is not None and conversation.messages[-1].is_learned:
        runs = runs.cut_to_limit(max_tokens)
    runs.require_limit(max_tokens)
    return runs


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
        runs = _tokenize_spans(conversation, spans, plans, template, text_tokenizer, frozenset())
    runs.require_limit(max_tokens)
    return replace(runs, learned=[False] * len(runs.ids)).expand(placeholder_id)


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


@dataclass(frozen=True, slots=True, eq=False)
class TokenRuns:
    """One conversation before it is expanded: its text tokens one by one, its visual rows as numbers.

    ids, learned: of the text tokens. visual: (text tokens before, rows) of each run of visual rows, in order, none empty.
    plans, origin, num_cut: as in `Encoded`, which `expand` makes; counts are the same in both.
    """

    ids: list[int]
    learned: list[bool]
    visual: list[tuple[int, int]]
    plans: tuple[RoutedPlan, ...]
    origin: str
    num_cut: int = 0
    __repr__ = format_by_shape

    def __len__(self) -> int:
        return len(self.ids) + self.num_visual

    @property
    def num_visual(self) -> int:
        return sum(rows for _, rows in self.visual)

    @property
    def num_labelled(self) -> int:
        """Learned rows behind the first one, which no row predicts."""
        begins_learned = self.learned[:1] == [True] and not (self.visual and self.visual[0][0] == 0)
        return sum(self.learned) - begins_learned

    def cut_to_limit(self, limit: int) -> TokenRuns:
        """The first `limit` rows, where all others belong to the end of the last answer; else all rows.

        That end is the last run of learned rows, of which one stays, and what the template writes behind it.
        """
        num_visual = self.num_visual
        behind = self.visual[-1][0] if self.visual else 0  # the first text token behind all visual rows
        first = max(i for i, learned in enumerate(self.learned) if learned)
        while first > behind and self.learned[first - 1]:
            first -= 1
        if not max(1, first + num_visual) < limit < len(self) or limit < behind + num_visual:
            return self
        kept = limit - num_visual
        return replace(self, ids=self.ids[:kept], learned=self.learned[:kept], num_cut=len(self) - limit)

    def require_limit(self, max_tokens: int | None) -> None:
        """Raise `TooLong` for more rows than that."""
        if max_tokens is not None and len(self) > max_tokens:
            raise TooLong(
                f"{self.origin}: {len(self)} tokens ({self.num_visual} of them visual), the limit is "
                f"{max_tokens}; shorten the conversation, give its visuals fewer tokens, or raise max_tokens."
            )

    def expand(self, placeholder_id: int) -> Encoded:
        """One row per token; visual ones hold `placeholder_id`."""
        is_visual = np.zeros(len(self), dtype=bool)
        rows_before = 0
        for text_before, rows in self.visual:
            is_visual[text_before + rows_before :][:rows] = True
            rows_before += rows
        ids, learned = np.full(len(self), placeholder_id, dtype=np.int64), np.zeros(len(self), dtype=bool)
        ids[~is_visual], learned[~is_visual] = self.ids, self.learned
        targets = np.full_like(ids, IGNORE)
        targets[:-1] = np.where(learned[1:], ids[1:], IGNORE)
        return Encoded(
            torch.from_numpy(ids),
            torch.from_numpy(targets),
            torch.from_numpy(np.flatnonzero(is_visual)),
            self.plans,
            self.origin,
            self.num_cut,
        )


def _tokenize_spans(
    conversation: Conversation,
    spans: Sequence[Span],
    plans: Sequence[RoutedPlan],
    template: ChatTemplate,
    text_tokenizer: TextTokenizer,
    everywhere: frozenset[int],
) -> TokenRuns:
    """`everywhere` holds text ids that are learned wherever they stand, except in inline texts."""
    tokenizer = SpanTokenizer(text_tokenizer, template)
    ids = _find_bos(spans, text_tokenizer)
    learned = [token in everywhere for token in ids]
    visual: list[tuple[int, int]] = []
    for is_text, group in groupby(unfold_plans(spans, plans), key=lambda piece: isinstance(piece, Span)):
        if not is_text:
            visual.append((len(ids), sum(piece for piece in group if isinstance(piece, int))))
            continue
        run = [piece for piece in group if isinstance(piece, Span) and piece.content]
        if run and run[0].content == text_tokenizer.bos_token and not run[0].literal:
            ids.append(text_tokenizer.bos_token_id)  # the text behind it is tokenised on its own, as behind `ids`
            learned.append(False)
            run = run[1:]
        tokens, owners = tokenizer.to_ids(run, behind_visual=bool(visual))
        ids += tokens
        learned += [
            span.learn or (token in everywhere and not isinstance(span, _InlineText))
            for token, span in zip(tokens, owners, strict=True)
        ]
    return TokenRuns(ids, learned, visual, tuple(plans), conversation.origin)


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
    if bos is None:
        return []
    added = list(text_tokenizer("", add_special_tokens=True, return_offsets_mapping=False)["input_ids"])
    if added[:1] != [text_tokenizer.bos_token_id]:
        return []
    first = next((span for span in spans if isinstance(span.content, str)), Span(""))
    is_in_template = not first.literal and str(first.content).startswith(bos)
    return [] if is_in_template else added[:1]
