from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Part, Text
from mmblocks.errors import ConfigError, DataError
from mmblocks.templates._turns import make_spans, strip_each_text, strip_ends
from mmblocks.templates.contents import PLACEHOLDER, ContentFormat, is_complete, make_placeholder
from mmblocks.templates.rendering import render_template

SAMPLE_QUESTION = Message("user", (Text("?"),))
SAMPLE_ANSWER = Message("assistant", (Text("!"),))
"""A question and an answer to try a template with."""


@templates.register(
    "tokenizer",
    source="https://huggingface.co/docs/transformers/chat_templating",
    verified_against="transformers apply_chat_template",
)
@dataclass(frozen=True)
class TokenizerChat:
    """The chat template of the backbone's own text tokenizer (Jinja), as spans.

    It is rendered with a mark in place of every text and visual, so where each stands is known, not searched. A template
    that takes contents as lists of parts, as processors' templates do, is given lists, and a visual stands where it writes
    the visual's token. Learned: what follows the template's generation prompt, up to the token that ends the answer; where
    it writes no such token, the text tokenizer's own. What it writes must be what it writes for the real texts (or these
    without outer white space): otherwise it is refused. One that writes an answer otherwise once the conversation goes on
    (Qwen3 leaves its thought out then), or behind another header than its prompt has (LLaVA-OneVision's on the hub), is
    learned from answer by answer, each behind the prompt that it will meet. `arguments` are handed to it, such as {"enable_thinking": false}.
    """

    text_tokenizer: Callable[[], Any] | None = None
    arguments: Mapping[str, Any] | None = None
    one_text: ClassVar[bool] = True

    @property
    def stop(self) -> tuple[str, ...]:
        return (self._answer_ending[1],)

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The added tokens of a user's turn, of an answer's end, and the one that opens an answer."""
        turn = self._render_placeholders([SAMPLE_QUESTION], False)
        return (
            *self._find_added_tokens(turn + self._answer_ending[0]),
            *self._find_added_tokens(self._answer_opening)[:1],
        )

    @cached_property
    def rewrites_answers(self) -> bool:
        """Whether an answer is written otherwise when it is the last message than when the conversation has gone on.

        Its tokens are others also where its first word would join the white space that ends the prompt.
        """
        talk = [SAMPLE_QUESTION, SAMPLE_ANSWER, SAMPLE_QUESTION, SAMPLE_ANSWER]
        try:
            whole = self._render_placeholders(talk, False)
        except DataError:  # one for a single question
            return False
        begins = all(
            whole.startswith(first)
            for first in (self._render_placeholders(talk[:1], True), self._render_placeholders(talk[:2], False))
        )
        return not begins or not self._answer_ending[0] or self._has_joined_opening

    @property
    def takes_lists(self) -> bool:
        """Whether the Jinja places visuals itself, in contents that are lists of parts."""
        return bool(self._content_format.roles_with_lists)

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        said = [replace(m, parts=m.parts or (Text(""),)) for m in messages]
        if (
            said
            and said[-1].is_learned
            and not self._render_placeholders(said, False).startswith(self._render_placeholders(said[:-1], True))
        ):
            end = Span(self._answer_ending[0] or self._answer_ending[1], True)
            return [*self.to_spans(said[:-1]), *self.open_answer(), *make_spans(said[-1].parts, learn=True), end]
        marked, parts = self._locate_parts(said)
        if (
            said
            and said[-1].role != "assistant"
            and self._render_placeholders(said, True) != marked + self._answer_opening
        ):
            raise ConfigError(f"{self._template_name} opens answers in more than one way; choose another template.")
        regions = self._find_learned_regions(said, marked)
        if (
            regions and said[-1].is_learned and not self._answer_ending[0]
        ):  # nothing ends it, so the tokenizer's own end does
            return [*_cut_spans(marked[: regions[-1][1]], parts, regions), Span(self._answer_ending[1], True)]
        return list(_cut_spans(marked, parts, regions))

    def open_answer(self) -> list[Span]:
        return [Span(self._answer_opening)] if self._answer_opening else []

    def _locate_parts(self, said: Sequence[Message]) -> tuple[str, list[Part]]:
        """The conversation with marks, and the parts that they stand for."""
        written = self._render_messages(self._content_format.to_messages(said), False)
        real = self._render_messages(self._content_format.to_messages(said, texts=True), False)
        marked = self._content_format.insert_placeholders(written, said)
        for strip in (tuple, strip_ends, strip_each_text):
            parts = [part for message in said for part in strip(message.parts)]
            if is_complete(marked, parts) and _fill_placeholders(written, parts) == real:
                return marked, parts
        raise DataError(
            f"{self._template_name} drops, moves or rewrites what is said, so what is learned cannot be told; "
            "choose another template, or leave out what it changes (a system message, thoughts)."
        )

    def _find_learned_regions(self, said: Sequence[Message], marked: str) -> list[tuple[int, int]]:
        """From where to where each answer is learned."""
        regions, last = [], -1
        for i, message in enumerate(said):
            first, last = last + 1, last + len(message.parts)
            if not message.is_learned:
                continue
            if self.rewrites_answers and i + 1 < len(said):
                raise ConfigError(
                    f"{self._template_name} rewrites answers once a conversation has gone on; learn each from a conversation that "
                    "ends with it (mmblocks.data.sample.processor.answer_by_answer)."
                )
            prompt = self._render_placeholders(said[:i], True)
            if not marked.startswith(prompt):
                raise ConfigError(
                    f"{self._template_name} does not write message {i} after its own prompt for it, so a model trained on it would "
                    "meet other prompts than it learned; choose another template."
                )
            end = max(m.end() for m in PLACEHOLDER.finditer(marked) if first <= int(m[1]) <= last)
            tail = self._answer_ending[0]
            regions.append((len(prompt), end + (len(tail) if marked.startswith(tail, end) else 0)))
        return regions

    @cached_property
    def _content_format(self) -> ContentFormat:
        """How the Jinja takes contents."""
        return ContentFormat.from_template(self._render_messages, self._tokenizer)

    @cached_property
    def _answer_opening(self) -> str:
        """What a generation prompt adds to a conversation."""
        closed, opened = (
            self._render_placeholders([SAMPLE_QUESTION], False),
            self._render_placeholders([SAMPLE_QUESTION], True),
        )
        if not opened.startswith(closed):
            raise ConfigError(
                f"{self._template_name} rewrites a conversation to open an answer; choose another template."
            )
        return opened.removeprefix(closed)

    @property
    def _has_joined_opening(self) -> bool:
        """Whether a word behind the prompt shares a token with the prompt's end."""
        prompt, written = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (self._answer_opening, f"{self._answer_opening}A")
        )
        return written[: len(prompt)] != prompt

    @cached_property
    def _answer_ending(self) -> tuple[str, str]:
        """What is learned after an answer, and the text in it that stops generation."""
        tail = self._render_placeholders([SAMPLE_QUESTION, SAMPLE_ANSWER], False).partition(make_placeholder(1))[2]
        if not tail.strip():
            if (own := self._tokenizer.eos_token) is None:
                raise ConfigError(f"{self._template_name} writes nothing after an answer, so answers would never end.")
            return "", own
        first = self._find_added_tokens(tail)[:1]
        return (tail[: tail.index(first[0]) + len(first[0])], first[0]) if first else (tail, tail)

    def _find_added_tokens(self, text: str) -> list[str]:
        """The added tokens that a text holds, in its order."""
        known = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.findall("|".join(map(re.escape, known)), text) if known else []

    @property
    def _tokenizer(self) -> Any:
        if self.text_tokenizer is None:
            raise ConfigError("the template 'tokenizer' was built without a backbone; build the model with it.")
        return self.text_tokenizer()

    @property
    def _template_name(self) -> str:
        return f"the chat template of the text tokenizer {self._tokenizer.name_or_path or '(unnamed)'}"

    def _render_placeholders(self, said: Sequence[Message], opened: bool) -> str:
        """A conversation with a mark for every part."""
        return self._content_format.insert_placeholders(
            self._render_messages(self._content_format.to_messages(said), opened), said
        )

    def _render_messages(self, messages: list[dict[str, Any]], opened: bool) -> str:
        """What transformers' `apply_chat_template` writes."""
        tokenizer = self._tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"the text tokenizer {tokenizer.name_or_path or '(unnamed)'} has no chat template; "
                "choose a template by name, such as qwen_2 or vicuna_v1."
            )
        if not messages:
            return ""
        given = dict(self.arguments or {})
        jinja = tokenizer.get_chat_template(given.pop("chat_template", None), given.get("tools"))
        names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": opened}
        return render_template(jinja, {**tokenizer.special_tokens_map, **names, **given}, self._template_name)


def _fill_placeholders(marked: str, parts: Sequence[Part]) -> str:
    def replace_placeholder(mark: re.Match[str]) -> str:
        part = parts[int(mark[1])]
        return part.text if isinstance(part, Text) else mark[0]

    return PLACEHOLDER.sub(replace_placeholder, marked)


def _cut_spans(marked: str, parts: Sequence[Part], regions: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """Spans of a marked text, cut at marks and where learning begins or ends."""
    marks = {m.start(): m for m in PLACEHOLDER.finditer(marked)}
    edges = {edge for region in regions for edge in region}
    cuts = sorted({0, len(marked), *edges, *marks, *(m.end() for m in marks.values())})
    for start, end in pairwise(cuts):
        learn = any(first <= start < last for first, last in regions)
        part = parts[int(marks[start][1])] if start in marks else Text(marked[start:end])
        if not isinstance(part, Text):
            yield Span(part)
        elif part.text:
            yield Span(part.text, learn, literal=start in marks)
