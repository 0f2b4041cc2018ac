"""Checks before training that samples train what they should: targets are decoded and compared with the answers.

The checks do not trust the `learn` flags of the chat template. The trained tokens are decoded, and the text must be that of the
assistant's messages, each followed by a text that ends a turn, and nothing else. White space is left out of the
comparison, since templates strip it and text tokenizers add it. targets="original" has rules of its own: there only
lengths, visuals and whether anything is trained are checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmblocks.batch import IGNORE
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.data.inspect.learned_text import LearnedText, count_common_letters, remove_whitespace
from mmblocks.data.inspect.lint_report import Finding, FindingKind, LintedConversation, LintReport, SourceLint
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.record_errors import name_errors, split_reason
from mmblocks.data.sample.encode import Encoded, NothingTrained, Targets, TooLong
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.templates.span_tokenizer import ControlTokens


def lint_mixture(
    mixture: Mixture, processor: Processor, targets: Targets = "answers", *, samples_per_source: int | None = 200
) -> LintReport:
    """Check samples of every source from file headers alone: evenly drawn ones, or all when `samples_per_source` is None."""
    linter = Linter(processor, targets)
    chosen = [choose_records(len(source), samples_per_source) for source in mixture.sources]
    reports = []
    with tqdm(total=sum(map(len, chosen)), desc="labels", unit="record", leave=False, disable=None) as bar:
        for number, indices in enumerate(chosen):
            looked = []
            for index in indices:
                looked += linter.lint_record(mixture, Draw(number, int(index)))
                bar.update()
            reports.append(SourceLint.from_conversations(mixture.names[number], len(mixture.sources[number]), looked))
    return LintReport(tuple(reports))


def choose_records(size: int, most: int | None) -> np.ndarray:
    """Up to `most` record numbers of `size`, drawn evenly, in their order; the same every time."""
    if most is None or most >= size:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).choice(size, most, replace=False))


class Linter:
    """The checks of one processor's samples."""

    def __init__(self, processor: Processor, targets: Targets = "answers") -> None:
        self.processor = processor
        self.targets: Targets = targets
        self._unlimited = replace(processor, max_tokens=None)

    def lint_record(self, mixture: Mixture, draw: Draw) -> list[LintedConversation]:
        """The checked conversations of a record; a record that cannot be read counts as one."""
        try:
            item = mixture[draw]
        except DataError as fault:
            origin, reason = split_reason(fault, mixture.describe_origin(draw))
            return [LintedConversation(Conversation((), origin), None, (Finding("broken", origin, reason),))]
        return [self.lint_conversation(conversation) for conversation in self.processor.list_conversations(item)]

    def lint_conversation(self, conversation: Conversation) -> LintedConversation:
        """Encode a conversation without a limit of length, and check what comes out."""
        origin = conversation.origin
        try:
            (encoded,) = self._unlimited.encode_item(conversation, self.targets)
            with name_errors(origin):
                faults = self._find_faults(conversation, encoded)
                findings = tuple(Finding(kind, origin, detail) for kind, detail in faults)
        except DataError as fault:
            kind: FindingKind = "nothing_trained" if isinstance(fault, NothingTrained) else "broken"
            detail = str(fault).removeprefix(f"{origin}: ")
            return LintedConversation(conversation, None, (Finding(kind, origin, detail),))
        limit = self.processor.max_tokens
        if limit is None or len(encoded) <= limit:
            return LintedConversation(conversation, encoded, findings)
        try:
            (cut,) = self.processor.encode_item(conversation, self.targets)
        except TooLong:
            num_tokens, num_visual = len(encoded), encoded.visual_positions.numel()
            detail = f"{num_tokens} tokens ({num_visual} of them visual), the limit is {limit}"
            findings = (Finding("too_long", origin, detail, num_tokens), *findings)
            return LintedConversation(conversation, encoded, findings)
        return LintedConversation(conversation, cut, findings)

    def _find_faults(self, conversation: Conversation, encoded: Encoded) -> Iterator[tuple[FindingKind, str]]:
        shown, plans, rows = len(conversation.visuals), encoded.plans, encoded.visual_positions
        if len(plans) != shown:
            yield "visuals", f"{shown} visuals, but {len(plans)} plans"
        planned = sum(self.processor.router.select_tokenizer(p.scenario).count_tokens(p.plan) for p in plans)
        if planned != rows.numel():
            yield "visuals", f"its plans make {planned} visual tokens, the sample has room for {rows.numel()}"
        if bool((encoded.input_ids[rows] != self.processor.placeholder_id).any()):
            yield "visuals", "a visual's place holds another token than the placeholder"
        if bool((encoded.targets[rows[rows > 0] - 1] != IGNORE).any()):
            yield "visuals", "a visual's place is trained as if it were text"
        following = torch.cat([encoded.input_ids[1:], encoded.input_ids.new_tensor([IGNORE])])
        wrong = (encoded.targets != IGNORE) & (encoded.targets != following)
        if bool(wrong.any()):
            yield "shifted", f"row {int(wrong.nonzero()[0])} must predict a token that does not follow it"
        for number, message in enumerate(conversation.messages):
            for texts, reading in (
                (self._control_tokens, "read as plain text"),
                (self._control_phrases, "read as the template's"),
            ):
                if found := [text for text in texts if text in message.text]:
                    yield "control", f"message {number} ({message.role}) holds {', '.join(map(repr, found))}, {reading}"
        if self.targets == "answers":
            yield from self._find_text_faults(conversation, encoded)

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        return tuple(ControlTokens.from_tokenizer(self.processor.text_tokenizer, self.processor.template).ids)

    @cached_property
    def _control_phrases(self) -> tuple[str, ...]:
        """What the template opens and ends answers with in plain text ("ASSISTANT:", "###"), without a token of its own."""
        template = self.processor.template
        opening = "".join(str(span.content) for span in template.open_answer())
        texts = {text.strip() for text in (opening, *template.stop)} - {""}
        return tuple(text for text in texts if not any(token in text for token in self._control_tokens))

    def _find_text_faults(self, conversation: Conversation, encoded: Encoded) -> Iterator[tuple[FindingKind, str]]:
        learned = LearnedText(self._decode_ids(encoded.targets[encoded.targets != IGNORE].tolist()))
        answers = [self._normalize_text(m.text) for m in conversation.messages if m.is_learned]
        at = 0
        for number, answer in enumerate(answers, start=1):
            found = learned.find_answer(answer, self._stops, at)
            if found is None:
                at += count_common_letters(answer, learned.letters[at:])
                yield "cut", f"answer {number} is trained up to {_shorten_text(learned.letters[:at][-40:])!r} only"
                at = learned.find_turn_end(at, self._stops) or at
                continue
            if learned.letters[at:found] not in ("", self._preface):
                yield "given_trained", f"before answer {number}: {_shorten_text(learned.letters[at:found])!r}"
            at = found + len(answer)
            if (end := learned.find_turn_end(at, self._stops)) is None:
                yield "no_end", f"answer {number} is trained without {' or '.join(map(repr, self._stops))} after it"
            at = at if end is None else end
        if at < len(learned.letters):
            yield "given_trained", f"after the last answer: {_shorten_text(learned.letters[at:])!r}"

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        """What may end an answer, as the text tokenizer writes it."""
        eos = self.processor.text_tokenizer.eos_token
        return tuple(map(self._reencode_text, self.processor.template.stop or ((eos,) if eos else ())))

    @cached_property
    def _preface(self) -> str:
        """What the template itself writes in every answer before the words, such as an empty thought."""
        template, word = self.processor.template, "Zebra"
        messages = [Message("user", (Text("Which?"),)), Message("assistant", (Text(word),))]
        try:
            spans = template.to_spans(messages), template.open_answer()
        except DataError:  # a template for captions alone
            return ""
        written, opening = ("".join(str(span.content) for span in part) for part in spans)
        before, _, _ = written.rpartition(word)
        return self._normalize_text(before.rpartition(opening)[2] if opening and opening in before else "")

    def _normalize_text(self, text: str) -> str:
        return remove_whitespace(self._reencode_text(text))

    def _reencode_text(self, text: str) -> str:
        """A text as it comes out of the text tokenizer, which may write letters in another way."""
        return self._decode_ids(list(self.processor.text_tokenizer(text, add_special_tokens=False)["input_ids"]))

    def _decode_ids(self, ids: Sequence[int]) -> str:
        tokenizer: Any = self.processor.text_tokenizer
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _shorten_text(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:30]}...{text[-25:]}"
