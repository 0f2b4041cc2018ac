import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from mmblocks.components import Span, templates
from mmblocks.conversation import Message, Part, Text
from mmblocks.errors import ConfigError, DataError
from mmblocks.templates.contents import PLACEHOLDER, ContentFormat, is_complete, make_placeholder
from mmblocks.templates.message_spans import make_spans, strip_each_text, strip_ends
from mmblocks.templates.rendering import render_template

SAMPLE_QUESTION = Message("user", (Text("?"),))
SAMPLE_ANSWER = Message("assistant", (Text("!"),))
"""A question and an answer to render a template with."""


@templates.register(
    "tokenizer",
    source="https://huggingface.co/docs/transformers/chat_templating",
    verified_against="transformers apply_chat_template",
)
@dataclass(frozen=True)
class TokenizerChat:
    """The chat template of the backbone's own text tokenizer (Jinja), as spans.

    It is rendered with a placeholder for every text, image and video, so their places are known, not searched. A template
    that takes contents as lists of parts, as processors' templates do, is given lists, and places images and videos itself.
    Learned: what follows the template's generation prompt, up to the token that ends the answer; where it writes no such
    token, the text tokenizer's own. Rendered with the real texts, the template must write the same (or the same without
    outer white space); otherwise it is refused. A template that writes an earlier answer otherwise than the last one
    (Qwen3 drops its thought), or behind another header than its generation prompt (LLaVA-OneVision's on the hub), is
    learned answer by answer, each behind its own prompt. `arguments` are passed to it, such as {"enable_thinking": false}.
    """

    text_tokenizer: Callable[[], Any] | None = None
    arguments: Mapping[str, Any] | None = None
    one_text: ClassVar[bool] = True

    @property
    def stop(self) -> tuple[str, ...]:
        return (self._answer_ending[1],)

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The added tokens of a user's turn, of an answer's end, and the first one that opens an answer."""
        turn = self._render_placeholders([SAMPLE_QUESTION], False)
        return (
            *self._find_added_tokens(turn + self._answer_ending[0]),
            *self._find_added_tokens(self._answer_opening)[:1],
        )

    @cached_property
    def rewrites_answers(self) -> bool:
        """Whether an answer is written otherwise as the last message than as an earlier one.

        Its tokens differ too where its first word would join the white space that ends the prompt.
        """
        messages = [SAMPLE_QUESTION, SAMPLE_ANSWER, SAMPLE_QUESTION, SAMPLE_ANSWER]
        try:
            whole = self._render_placeholders(messages, False)
        except DataError:  # a template for a single question
            return False
        prompt, first_turn = (
            self._render_placeholders(messages[:1], True),
            self._render_placeholders(messages[:2], False),
        )
        if not whole.startswith(prompt) or not whole.startswith(first_turn) or not self._answer_ending[0]:
            return True
        opening, opening_and_word = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (self._answer_opening, f"{self._answer_opening}A")
        )
        return opening_and_word[: len(opening)] != opening

    @property
    def takes_lists(self) -> bool:
        """Whether the template takes contents that are lists of parts, and places images and videos itself."""
        return bool(self._content_format.roles_with_lists)

    def to_spans(self, messages: Sequence[Message]) -> list[Span]:
        messages = [replace(m, parts=m.parts or (Text(""),)) for m in messages]
        last = messages[-1] if messages else None
        if last is not None and last.is_learned:
            whole, prompt = self._render_placeholders(messages, False), self._render_placeholders(messages[:-1], True)
            if not whole.startswith(prompt):
                end = Span(self._answer_ending[0] or self._answer_ending[1], True)
                before = [*self.to_spans(messages[:-1]), *self.open_answer()]
                return [*before, *make_spans(last.parts, learn=True), end]
        rendered, parts = self._locate_parts(messages)
        is_open = last is not None and last.role != "assistant"
        if is_open and self._render_placeholders(messages, True) != rendered + self._answer_opening:
            raise ConfigError(f"{self._template_name} opens answers in more than one way; choose another template.")
        regions = self._find_learned_regions(messages, rendered)
        if regions and messages[-1].is_learned and not self._answer_ending[0]:  # it ends with the tokenizer's own end
            return [*_cut_spans(rendered[: regions[-1][1]], parts, regions), Span(self._answer_ending[1], True)]
        return list(_cut_spans(rendered, parts, regions))

    def open_answer(self) -> list[Span]:
        return [Span(self._answer_opening)] if self._answer_opening else []

    def _locate_parts(self, messages: Sequence[Message]) -> tuple[str, list[Part]]:
        """The conversation with placeholders, and the parts that they stand for."""
        written = self._render_messages(self._content_format.to_messages(messages), False)
        with_texts = self._render_messages(self._content_format.to_messages(messages, texts=True), False)
        rendered = self._content_format.insert_placeholders(written, messages)
        for strip in (tuple, strip_ends, strip_each_text):
            parts = [part for message in messages for part in strip(message.parts)]
            if not is_complete(rendered, parts):
                continue
            texts = {make_placeholder(n): part.text for n, part in enumerate(parts) if isinstance(part, Text)}
            if PLACEHOLDER.sub(lambda match: texts.get(match[0], match[0]), written) == with_texts:  # noqa: B023
                return rendered, parts
        raise DataError(
            f"{self._template_name} drops, moves or rewrites text of messages, so the learned text is not known; "
            "choose another template, or leave out what it changes (a system message, thoughts)."
        )

    def _find_learned_regions(self, messages: Sequence[Message], rendered: str) -> list[tuple[int, int]]:
        """Where the learned text of each answer begins and ends."""
        regions, last = [], -1
        for i, message in enumerate(messages):
            first, last = last + 1, last + len(message.parts)
            if not message.is_learned:
                continue
            if self.rewrites_answers and i + 1 < len(messages):
                raise ConfigError(
                    f"{self._template_name} rewrites earlier answers; learn each answer from a conversation that ends "
                    "with it (mmblocks.data.sample.processor.split_answers)."
                )
            prompt = self._render_placeholders(messages[:i], True)
            if not rendered.startswith(prompt):
                raise ConfigError(
                    f"{self._template_name} does not write message {i} after its own prompt for it, so a model would be "
                    "trained on other prompts than it meets in generation; choose another template."
                )
            end = max(m.end() for m in PLACEHOLDER.finditer(rendered) if first <= int(m[1]) <= last)
            ending = self._answer_ending[0]
            regions.append((len(prompt), end + (len(ending) if rendered.startswith(ending, end) else 0)))
        return regions

    @cached_property
    def _content_format(self) -> ContentFormat:
        return ContentFormat.from_template(self._render_messages, self._tokenizer)

    @cached_property
    def _answer_opening(self) -> str:
        """The generation prompt: what it adds to a conversation."""
        question, prompt = (self._render_placeholders([SAMPLE_QUESTION], opened) for opened in (False, True))
        if not prompt.startswith(question):
            raise ConfigError(
                f"{self._template_name} rewrites a conversation to open an answer; choose another template."
            )
        return prompt.removeprefix(question)

    @cached_property
    def _answer_ending(self) -> tuple[str, str]:
        """The learned text behind an answer, and the text in it that stops generation."""
        ending = self._render_placeholders([SAMPLE_QUESTION, SAMPLE_ANSWER], False).partition(make_placeholder(1))[2]
        if not ending.strip():
            if (eos := self._tokenizer.eos_token) is None:
                raise ConfigError(f"{self._template_name} writes nothing after an answer, so answers would never end.")
            return "", eos
        if not (added := self._find_added_tokens(ending)):
            return ending, ending
        return ending[: ending.index(added[0]) + len(added[0])], added[0]

    def _find_added_tokens(self, text: str) -> list[str]:
        """The added tokens in a text, in their order."""
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

    def _render_placeholders(self, messages: Sequence[Message], opened: bool) -> str:
        """A conversation with a placeholder for every part; `opened` with the generation prompt."""
        rendered = self._render_messages(self._content_format.to_messages(messages), opened)
        return self._content_format.insert_placeholders(rendered, messages)

    def _render_messages(self, messages: list[dict[str, Any]], opened: bool) -> str:
        """The output of transformers' `apply_chat_template`."""
        tokenizer = self._tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"the text tokenizer {tokenizer.name_or_path or '(unnamed)'} has no chat template; "
                "choose a template by name, such as qwen_2 or vicuna_v1."
            )
        if not messages:
            return ""
        arguments = dict(self.arguments or {})
        jinja = tokenizer.get_chat_template(arguments.pop("chat_template", None), arguments.get("tools"))
        names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": opened}
        return render_template(jinja, {**tokenizer.special_tokens_map, **names, **arguments}, self._template_name)


def _cut_spans(rendered: str, parts: Sequence[Part], regions: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """Spans of a rendered text, cut at placeholders and at the ends of learned regions."""
    placeholders = {m.start(): m for m in PLACEHOLDER.finditer(rendered)}
    edges = {edge for region in regions for edge in region}
    cuts = sorted({0, len(rendered), *edges, *placeholders, *(m.end() for m in placeholders.values())})
    for start, end in pairwise(cuts):
        learn = any(first <= start < last for first, last in regions)
        part = parts[int(placeholders[start][1])] if start in placeholders else Text(rendered[start:end])
        if not isinstance(part, Text):
            yield Span(part)
        elif part.text:
            yield Span(part.text, learn, literal=start in placeholders)
