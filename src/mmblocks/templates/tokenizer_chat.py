from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Part, Text
from mmblocks.errors import ConfigError, DataError
from mmblocks.templates._turns import stripped

MARK = re.compile("\ue000([0-9]+)\ue001")
"""Private characters that stand for a part of a message while the template is rendered."""


@templates.register(
    "tokenizer",
    source="https://huggingface.co/docs/transformers/chat_templating",
    oracle="transformers apply_chat_template",
)
@dataclass(frozen=True)
class TokenizerChat:
    """The chat template of the backbone's own text tokenizer (Jinja), as spans.

    It is rendered with a mark in place of every text and visual, so where each stands is known, not searched. Learned:
    what follows the template's generation prompt, up to the token that ends the answer. What it writes must be what it
    writes for the real texts (or these without outer white space), and the prompt for an answer must be the beginning of
    the conversation with it: otherwise it is refused. One that writes an answer otherwise once the conversation goes on
    (Qwen3 leaves its thought out then) is learned from answer by answer. `arguments` are handed to it, such as
    {"enable_thinking": false}.
    """

    text_tokenizer: Callable[[], Any] | None = None
    arguments: Mapping[str, Any] | None = None

    @property
    def stop(self) -> tuple[str, ...]:
        return (self._ending[1],)

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The added tokens of a user's turn, of an answer's end, and the one that opens an answer."""
        turn = self._render([{"role": "user", "content": _mark(0)}], False)
        return (*self._added_in(turn + self._ending[0]), *self._added_in(self._opening)[:1])

    @cached_property
    def rewrites_answers(self) -> bool:
        """Whether an answer is written otherwise when it is the last message than when the conversation has gone on."""
        talk = [{"role": role, "content": _mark(n)} for n, role in enumerate(("user", "assistant") * 2)]
        try:
            whole = self._render(talk, False)
        except DataError:  # one for a single question
            return False
        return not all(
            whole.startswith(first) for first in (self._render(talk[:1], True), self._render(talk[:2], False))
        )

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        said = [replace(m, parts=m.parts or (Text(""),)) for m in messages]
        marked, parts = self._marked(said)
        if said and said[-1].role != "assistant" and self._render(_numbered(said), True) != marked + self._opening:
            raise ConfigError(f"{self._whose} opens answers in more than one way; choose another template.")
        return list(_cut(marked, parts, self._learned(said, marked)))

    def open_answer(self) -> list[Span]:
        return [Span(self._opening)] if self._opening else []

    def _marked(self, said: Sequence[Message]) -> tuple[str, list[Part]]:
        """The conversation with marks, and the parts that they stand for."""
        marked = self._render(_numbered(said), False)
        real = self._render(_numbered(said, texts=True), False)
        for variant in (said, [replace(m, parts=stripped(m.parts)) for m in said]):
            parts = [part for message in variant for part in message.parts]
            if [int(n) for n in MARK.findall(marked)] == list(range(len(parts))) and _with_texts(marked, parts) == real:
                return marked, parts
        raise DataError(
            f"{self._whose} drops, moves or rewrites what is said, so what is learned cannot be told; "
            "choose another template, or leave out what it changes (a system message, thoughts)."
        )

    def _learned(self, said: Sequence[Message], marked: str) -> list[tuple[int, int]]:
        """From where to where each answer is learned."""
        regions, last = [], -1
        for i, message in enumerate(said):
            last += len(message.parts)
            if not message.is_learned:
                continue
            if self.rewrites_answers and i + 1 < len(said):
                raise ConfigError(
                    f"{self._whose} rewrites answers once a conversation has gone on; learn each from a conversation that "
                    "ends with it (mmblocks.data.processor.answer_by_answer)."
                )
            prompt = self._render(_numbered(said[:i]), True)
            if not marked.startswith(prompt):
                raise ConfigError(
                    f"{self._whose} does not write message {i} after its own prompt for it, so a model trained on it would "
                    "meet other prompts than it learned; choose another template."
                )
            end = next(m.end() for m in MARK.finditer(marked) if int(m[1]) == last)
            tail = self._ending[0]
            regions.append((len(prompt), end + (len(tail) if marked.startswith(tail, end) else 0)))
        return regions

    @cached_property
    def _opening(self) -> str:
        """What a generation prompt adds to a conversation."""
        asked = [{"role": "user", "content": _mark(0)}]
        closed, opened = self._render(asked, False), self._render(asked, True)
        if not opened.startswith(closed):
            raise ConfigError(f"{self._whose} rewrites a conversation to open an answer; choose another template.")
        return opened.removeprefix(closed)

    @cached_property
    def _ending(self) -> tuple[str, str]:
        """What is learned after an answer, and the text in it that stops generation."""
        talk = [{"role": "user", "content": _mark(0)}, {"role": "assistant", "content": _mark(1)}]
        tail = self._render(talk, False).partition(_mark(1))[2]
        if not tail.strip():
            raise ConfigError(f"{self._whose} writes nothing after an answer, so answers would never end.")
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

    def _render(self, messages: list[dict[str, str]], opened: bool) -> str:
        from jinja2 import TemplateError

        tokenizer = self._tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"the text tokenizer {tokenizer.name_or_path or '(unnamed)'} has no chat template; "
                "choose a template by name, such as qwen_2 or vicuna_v1."
            )
        if not messages:
            return ""
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, **(self.arguments or {})
            )
        except TemplateError as cause:
            raise DataError(f"{self._whose} refuses this conversation: {cause}") from cause


def _mark(number: int) -> str:
    return f"\ue000{number}\ue001"


def _numbered(said: Sequence[Message], *, texts: bool = False) -> list[dict[str, str]]:
    """Messages with a mark for every part, or for every visual only."""
    numbers = iter(range(sum(len(m.parts) for m in said)))
    return [
        {
            "role": message.role,
            "content": "".join(
                part.text if texts and isinstance(part, Text) else _mark(n)
                for n, part in zip((next(numbers) for _ in message.parts), message.parts, strict=True)
            ),
        }
        for message in said
    ]


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
