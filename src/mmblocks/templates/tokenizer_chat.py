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
from mmblocks.templates._turns import spans_of, stripped, stripped_apart
from mmblocks.templates.contents import MARK, Contents, is_complete, mark
from mmblocks.templates.rendering import render

ASKED = Message("user", (Text("?"),))
ANSWERED = Message("assistant", (Text("!"),))
"""A question and an answer to try a template with."""


@templates.register(
    "tokenizer",
    source="https://huggingface.co/docs/transformers/chat_templating",
    oracle="transformers apply_chat_template",
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
        return (self._ending[1],)

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The added tokens of a user's turn, of an answer's end, and the one that opens an answer."""
        turn = self._written([ASKED], False)
        return (*self._added_in(turn + self._ending[0]), *self._added_in(self._opening)[:1])

    @cached_property
    def rewrites_answers(self) -> bool:
        """Whether an answer is written otherwise when it is the last message than when the conversation has gone on.

        Its tokens are others also where its first word would join the white space that ends the prompt.
        """
        talk = [ASKED, ANSWERED, ASKED, ANSWERED]
        try:
            whole = self._written(talk, False)
        except DataError:  # one for a single question
            return False
        begins = all(
            whole.startswith(first) for first in (self._written(talk[:1], True), self._written(talk[:2], False))
        )
        return not begins or not self._ending[0] or self._opening_joins_words

    @property
    def takes_lists(self) -> bool:
        """Whether the Jinja places visuals itself, in contents that are lists of parts."""
        return bool(self._contents.listed)

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        said = [replace(m, parts=m.parts or (Text(""),)) for m in messages]
        if said and said[-1].is_learned and not self._written(said, False).startswith(self._written(said[:-1], True)):
            end = Span(self._ending[0] or self._ending[1], True)
            return [*self.spans(said[:-1]), *self.open_answer(), *spans_of(said[-1].parts, learn=True), end]
        marked, parts = self._marked(said)
        if said and said[-1].role != "assistant" and self._written(said, True) != marked + self._opening:
            raise ConfigError(f"{self._whose} opens answers in more than one way; choose another template.")
        regions = self._learned(said, marked)
        if regions and said[-1].is_learned and not self._ending[0]:  # nothing ends it, so the tokenizer's own end does
            return [*_cut(marked[: regions[-1][1]], parts, regions), Span(self._ending[1], True)]
        return list(_cut(marked, parts, regions))

    def open_answer(self) -> list[Span]:
        return [Span(self._opening)] if self._opening else []

    def _marked(self, said: Sequence[Message]) -> tuple[str, list[Part]]:
        """The conversation with marks, and the parts that they stand for."""
        written = self._render(self._contents.messages(said), False)
        real = self._render(self._contents.messages(said, texts=True), False)
        marked = self._contents.with_marks(written, said)
        for strip in (tuple, stripped, stripped_apart):
            parts = [part for message in said for part in strip(message.parts)]
            if is_complete(marked, parts) and _with_texts(written, parts) == real:
                return marked, parts
        raise DataError(
            f"{self._whose} drops, moves or rewrites what is said, so what is learned cannot be told; "
            "choose another template, or leave out what it changes (a system message, thoughts)."
        )

    def _learned(self, said: Sequence[Message], marked: str) -> list[tuple[int, int]]:
        """From where to where each answer is learned."""
        regions, last = [], -1
        for i, message in enumerate(said):
            first, last = last + 1, last + len(message.parts)
            if not message.is_learned:
                continue
            if self.rewrites_answers and i + 1 < len(said):
                raise ConfigError(
                    f"{self._whose} rewrites answers once a conversation has gone on; learn each from a conversation that "
                    "ends with it (mmblocks.data.sample.processor.answer_by_answer)."
                )
            prompt = self._written(said[:i], True)
            if not marked.startswith(prompt):
                raise ConfigError(
                    f"{self._whose} does not write message {i} after its own prompt for it, so a model trained on it would "
                    "meet other prompts than it learned; choose another template."
                )
            end = max(m.end() for m in MARK.finditer(marked) if first <= int(m[1]) <= last)
            tail = self._ending[0]
            regions.append((len(prompt), end + (len(tail) if marked.startswith(tail, end) else 0)))
        return regions

    @cached_property
    def _contents(self) -> Contents:
        """How the Jinja takes contents."""
        return Contents.of(self._render, self._tokenizer)

    @cached_property
    def _opening(self) -> str:
        """What a generation prompt adds to a conversation."""
        closed, opened = self._written([ASKED], False), self._written([ASKED], True)
        if not opened.startswith(closed):
            raise ConfigError(f"{self._whose} rewrites a conversation to open an answer; choose another template.")
        return opened.removeprefix(closed)

    @property
    def _opening_joins_words(self) -> bool:
        """Whether a word behind the prompt shares a token with the prompt's end."""
        prompt, written = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (self._opening, f"{self._opening}A")
        )
        return written[: len(prompt)] != prompt

    @cached_property
    def _ending(self) -> tuple[str, str]:
        """What is learned after an answer, and the text in it that stops generation."""
        tail = self._written([ASKED, ANSWERED], False).partition(mark(1))[2]
        if not tail.strip():
            if (own := self._tokenizer.eos_token) is None:
                raise ConfigError(f"{self._whose} writes nothing after an answer, so answers would never end.")
            return "", own
        first = self._added_in(tail)[:1]
        return (tail[: tail.index(first[0]) + len(first[0])], first[0]) if first else (tail, tail)

    def _added_in(self, text: str) -> list[str]:
        """The added tokens that a text holds, in its order."""
        known = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.findall("|".join(map(re.escape, known)), text) if known else []

    @property
    def _tokenizer(self) -> Any:
        if self.text_tokenizer is None:
            raise ConfigError("the template 'tokenizer' was built without a backbone; build the model with it.")
        return self.text_tokenizer()

    @property
    def _whose(self) -> str:
        return f"the chat template of the text tokenizer {self._tokenizer.name_or_path or '(unnamed)'}"

    def _written(self, said: Sequence[Message], opened: bool) -> str:
        """A conversation with a mark for every part."""
        return self._contents.with_marks(self._render(self._contents.messages(said), opened), said)

    def _render(self, messages: list[dict[str, Any]], opened: bool) -> str:
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
        return render(jinja, {**tokenizer.special_tokens_map, **names, **given}, self._whose)


def _with_texts(marked: str, parts: Sequence[Part]) -> str:
    def text(mark: re.Match[str]) -> str:
        part = parts[int(mark[1])]
        return part.text if isinstance(part, Text) else mark[0]

    return MARK.sub(text, marked)


def _cut(marked: str, parts: Sequence[Part], regions: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """Spans of a marked text, cut at marks and where learning begins or ends."""
    marks = {m.start(): m for m in MARK.finditer(marked)}
    edges = {edge for region in regions for edge in region}
    cuts = sorted({0, len(marked), *edges, *marks, *(m.end() for m in marks.values())})
    for start, end in pairwise(cuts):
        learn = any(first <= start < last for first, last in regions)
        part = parts[int(marks[start][1])] if start in marks else Text(marked[start:end])
        if not isinstance(part, Text):
            yield Span(part)
        elif part.text:
            yield Span(part.text, learn, literal=start in marks)
