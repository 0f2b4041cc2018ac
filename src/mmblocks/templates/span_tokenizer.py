"""Text spans to ids. Control tokens are recognised in a template's own text only, never in what people wrote.

A chat template and the text of people are tokenised together, so that the ids are those of the whole prompt. Where the
text of people contains a control token ("<|im_end|>" in a question), it is tokenised as ordinary text there, into ids
that decode to the same text.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from mmblocks.components import ChatTemplate, Span
from mmblocks.conversation import Message
from mmblocks.errors import ConfigError

Offsets = Sequence[tuple[int, int]]


class TextTokenizer(Protocol):
    """What is asked of a text tokenizer; every fast tokenizer of transformers has it."""

    @property
    def is_fast(self) -> bool: ...

    @property
    def bos_token(self) -> str | None: ...

    @property
    def bos_token_id(self) -> Any: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    @property
    def backend_tokenizer(self) -> Any: ...

    def __len__(self) -> int: ...

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]: ...


class ControlTokens:
    """The control tokens of a text tokenizer (text -> id), and the tokenizer without them.

    lead: a special token to stand in front of what is the rest of a text, and to be left out again; none where there is none.
    """

    def __init__(self, ids: Mapping[str, int], lead: str | None, backend: Any) -> None:
        self.ids = ids
        self.numbers = frozenset(ids.values())
        self.lead = [] if lead is None else [Span(lead)]
        self._backend = backend

    @classmethod
    def from_tokenizer(cls, text_tokenizer: TextTokenizer, template: ChatTemplate) -> ControlTokens:
        """What has a meaning beside its letters: special tokens, and added ones that the template names.

        Added tokens that are neither (Qwen3's <think>) are text that an answer may hold.
        """
        named = frozenset((*template.stop, *getattr(template, "special", ())))
        known = _KNOWN.setdefault(text_tokenizer, {})
        key = named, len(text_tokenizer)
        if key not in known:
            added = text_tokenizer.added_tokens_decoder.items()
            ids = {token.content: number for number, token in added if token.special or token.content in named}
            lead = next((token.content for _, token in added if token.special and not token.rstrip), None)
            known[key] = cls(ids, lead, text_tokenizer.backend_tokenizer)
        return known[key]

    @cached_property
    def alias_tokenizer(self) -> _AliasTokenizer:
        """Made when text of people first holds a control token: reading a large vocabulary takes a second."""
        return _AliasTokenizer.from_backend(self._backend, self.ids)


_KNOWN: WeakKeyDictionary[Any, dict[tuple[frozenset[str], int], ControlTokens]] = WeakKeyDictionary()


class SpanTokenizer:
    """The ids of a chat template's text spans by one text tokenizer. Raises `ConfigError` for a slow one.

    Text behind a visual is a text of its own, as in LLaVA's code, or, for a template that says `one_text`, the rest of one
    text, as in transformers' processors. They differ where a tokenizer writes a space in front of every text (Llama's).
    """

    def __init__(self, text_tokenizer: TextTokenizer, template: ChatTemplate) -> None:
        if not text_tokenizer.is_fast:
            raise ConfigError(
                f"the text tokenizer {type(text_tokenizer).__name__} does not say which characters a token covers; "
                "use its fast form."
            )
        self._tokenizer = text_tokenizer
        self._control = ControlTokens.from_tokenizer(text_tokenizer, template)
        self._lead = self._control.lead if getattr(template, "one_text", False) else []

    def to_ids(self, run: Sequence[Span], *, behind_visual: bool = False) -> Iterator[tuple[int, Span]]:
        """(id, the span it begins in) of spans that adjoin, tokenised together.

        Where one token would join learned and given text ("\\n" of a header with the first "\\n" of an answer), the text
        is cut there and tokenised apart: that is what the model meets when it writes.
        """
        lead = self._lead if behind_visual else []
        tokens, covered, starts = self._tokenize_together([*lead, *run])
        tokens, covered, starts = tokens[len(lead) :], covered[len(lead) :], starts[len(lead) :]
        cut = _find_straddled_span(run, starts, covered)
        if cut is not None:
            yield from self.to_ids(run[:cut], behind_visual=behind_visual)
            yield from self.to_ids(run[cut:], behind_visual=behind_visual)
            return
        for token, (start, _) in zip(tokens, covered, strict=True):
            yield token, run[bisect_right(starts, start) - 1]

    def _tokenize_together(self, run: Sequence[Span]) -> tuple[Sequence[int], Offsets, list[int]]:
        """Ids of the spans' whole text, the characters that each covers, and where each span starts."""
        texts = [str(span.content) for span in run]
        starts = [0, *accumulate(map(len, texts))][:-1]
        found = self._tokenizer("".join(texts), add_special_tokens=False, return_offsets_mapping=True)
        tokens, covered = found["input_ids"], found["offset_mapping"]
        if self._has_control_in_literal_text(run, starts, tokens, covered):
            return self._control.alias_tokenizer.tokenize_together(run)
        return tokens, covered, starts

    def _has_control_in_literal_text(
        self, run: Sequence[Span], starts: list[int], tokens: Sequence[int], covered: Offsets
    ) -> bool:
        return any(
            span.literal
            for token, (start, end) in zip(tokens, covered, strict=True)
            if token in self._control.numbers
            for span in run[bisect_right(starts, start) - 1 : bisect_right(starts, end - 1)]
        )


def make_prompt_spans(template: ChatTemplate, messages: Sequence[Message]) -> list[Span]:
    """Messages up to where the answer begins.

    Earlier answers are marked as training has them in front of the last one, so that they are cut where training cuts them:
    none is learned where answers are learned apart.
    """
    apart = getattr(template, "rewrites_answers", False)
    given = [replace(message, learn=False) for message in messages] if apart else messages
    return [*template.to_spans(given), *template.open_answer()]


@dataclass(frozen=True, slots=True)
class _AliasTokenizer:
    """A text tokenizer whose control tokens have names that nobody can write: the same ids for a template's own text."""

    backend: Any
    names: Mapping[str, str]
    pattern: re.Pattern[str]

    @classmethod
    def from_backend(cls, backend: Any, control: Mapping[str, int]) -> _AliasTokenizer:
        from tokenizers import Tokenizer

        # Drawn anew in every process; a tokenizer's own texts are left alone, for these are private characters.
        secret = secrets.token_hex(8)
        names = {text: f"\U000f0000{secret}{number}\U000f0001" for text, number in control.items()}
        settings = json.loads(backend.to_str())
        for token in settings["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename_tokens(settings["model"], names)
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return cls(Tokenizer.from_str(json.dumps(settings)), names, re.compile(pattern))

    def tokenize_together(self, run: Sequence[Span]) -> tuple[Sequence[int], Offsets, list[int]]:
        """As `SpanTokenizer._together`, the control tokens being those in the template's own spans."""
        texts = [str(span.content) if span.literal else self._with_names(str(span.content)) for span in run]
        starts = [0, *accumulate(map(len, texts))][:-1]
        encoding = self.backend.encode("".join(texts), add_special_tokens=False)
        return encoding.ids, encoding.offsets, starts

    def _with_names(self, text: str) -> str:
        return self.pattern.sub(lambda found: self.names[found[0]], text)


def _rename_tokens(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens of a model of the tokenizers library (BPE, WordPiece, WordLevel, Unigram), in place."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if _merged(pair) not in names]


def _merged(pair: str | Sequence[str]) -> str:
    return "".join(pair.split(" ") if isinstance(pair, str) else pair)


def _find_straddled_span(run: Sequence[Span], starts: list[int], covered: Offsets) -> int | None:
    """The first span at whose start learning begins or ends in the middle of a token.

    A token reaches back to the one before it: some tokenizers do not count the space that a token begins with (Llama 3's).
    """
    edges = {starts[i]: i for i in range(1, len(run)) if run[i].learn != run[i - 1].learn}
    reached = zip([starts[0] if starts else 0, *(end for _, end in covered)], (end for _, end in covered), strict=False)
    straddled = [edges[c] for begin, end in reached for c in range(begin + 1, end) if c in edges]
    return min(straddled, default=None)
