"""Possible answers behind a prompt, as the ids that training on them teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmblocks.components import ChatTemplate, Span
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.encode import Encoded, TooLong, unfold_plans
from mmblocks.errors import DataError
from mmblocks.templates.span_tokenizer import SpanTokenizer, TextTokenizer, make_prompt_spans


def encode_continuations(
    conversation: Conversation,
    prompt: Encoded,
    continuations: Sequence[str],
    *,
    template: ChatTemplate,
    text_tokenizer: TextTokenizer,
    max_tokens: int | None = None,
) -> list[list[int]]:
    """The ids of each continuation behind the prompt that `encode_prompt` made of a conversation.

    They include what the template writes between prompt and answer (Vicuna's space), and nothing that it writes behind the
    answer (end token, newline). Prompt and continuation are tokenised together, and apart where a token would hold
    both. Raises `DataError` for a text without a token, `TooLong` over `max_tokens`.
    """
    tokenizer, found = SpanTokenizer(text_tokenizer, template), []
    with name_errors(conversation.origin):
        opening, behind_visual = _list_opening_spans(
            conversation, prompt, template, tokenizer, text_tokenizer.bos_token
        )
        opening_ids, _ = tokenizer.to_ids(opening, behind_visual=behind_visual)
        for text in continuations:
            answer = _make_answer_spans(template, conversation, text) if text else []
            ids, _ = tokenizer.to_ids([*opening, *answer], behind_visual=behind_visual)
            if ids[: len(opening_ids)] == opening_ids:
                found.append(ids[len(opening_ids) :])
            else:
                found.append(tokenizer.to_ids(answer, behind_visual=behind_visual)[0])
    for text, ids in zip(continuations, found, strict=True):
        if not ids:
            raise DataError(f"{conversation.origin}: the continuation {text!r} has no token; leave it out.")
        if max_tokens is not None and len(prompt) + len(ids) > max_tokens:
            raise TooLong(
                f"{conversation.origin}: {len(prompt)} tokens and {len(ids)} of the continuation {text[:40]!r}, the limit is "
                f"{max_tokens}; shorten the conversation, give its visuals fewer tokens, or raise max_tokens."
            )
    return found


def _list_opening_spans(
    conversation: Conversation, prompt: Encoded, template: ChatTemplate, tokenizer: SpanTokenizer, bos: str | None
) -> tuple[list[Span], bool]:
    """The end of a prompt's text that decides the ids behind it, and whether a visual row stands directly in front of it."""
    behind_visual = False
    spans: list[Span] = []
    for piece in unfold_plans(make_prompt_spans(template, conversation.messages), prompt.plans):
        if isinstance(piece, int):
            spans, behind_visual = [], behind_visual or piece > 0
        elif not spans and piece.content == bos and not piece.literal:
            continue  # the text behind it is tokenised on its own, as `encode_prompt` does
        elif tokenizer.is_cut_before(piece):
            spans, behind_visual = [piece], False
        elif piece.content:
            spans.append(piece)
    return spans, behind_visual


def _make_answer_spans(template: ChatTemplate, conversation: Conversation, text: str) -> list[Span]:
    """The learned spans of an answer up to the end of its text."""
    before = [replace(message, learn=False) for message in conversation.messages]
    spans = template.to_spans([*before, Message("assistant", (Text(text),))])
    while spans and not (spans[-1].learn and spans[-1].literal):
        spans.pop()
    given = [i for i, span in enumerate(spans) if not span.learn]
    return spans[given[-1] + 1 if given else 0 :]
