"""Text spans to ids. Control tokens are recognised in the template's own text only, never in the text of messages.

The template's text and the messages are tokenised together, so that the ids are those of the whole prompt. A control token
in the text of a message ("<|im_end|>" in a question) is tokenised as ordinary text, into ids that decode to the same text.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from mmblocks.components import ChatTemplate, OneTextTemplate, RewritingTemplate, Span, has_capability
from mmblocks.conversation import Message
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Offsets = Sequence[tuple[int, int]]


class TextTokenizer(Protocol):
    """The interface of a text tokenizer; every fast tokenizer of transformers has it."""

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

    lead: a special token to put in front of the rest of a text and to drop from its ids, if there is one.
    """

    def __init__(self, ids: Mapping[str, int], lead: str | None, backend: Tokenizer) -> None:
        self.ids = ids
        self.numbers = frozenset(ids.values())
        self.lead = [] if lead is None else [Span(lead)]
        self._backend = backend

    @classmethod
    def from_tokenizer(cls, text_tokenizer: TextTokenizer, template: ChatTemplate) -> ControlTokens:
        """The special tokens, and those added tokens that the template names.

        Other added tokens (Qwen3's <think>) are text that an answer may hold.
        """
        # Of a `SpecialTokenTemplate`, without isinstance, which takes 20 us of every sample.
        special = getattr(template, "special", ())
        named = frozenset((*template.stop, *special))
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
        """Made when a message first holds a control token: reading a large vocabulary takes a second."""
        return _AliasTokenizer.from_backend(self._backend, self.ids)


_KNOWN: WeakKeyDictionary[Any, dict[tuple[frozenset[str], int], ControlTokens]] = WeakKeyDictionary()


class SpanTokenizer:
    """The ids of a chat template's text spans by one text tokenizer. Raises `ConfigError` for a slow one.

    Text behind an image or video is a text of its own, as in LLaVA's code, or, for a `OneTextTemplate`, the rest of one
    text, as in transformers' processors. They differ where a tokenizer writes a space in front of every text (Llama's).
    """

    def __init__(self, text_tokenizer: TextTokenizer, template: ChatTemplate) -> None:
        if not text_tokenizer.is_fast:
            raise ConfigError(
                f"the text tokenizer {type(text_tokenizer).__name__} does not say which characters a token covers; "
                "use its fast version."
            )
        self._tokenizer = text_tokenizer
        self._control = ControlTokens.from_tokenizer(text_tokenizer, template)
        self._lead = self._control.lead if has_capability(template, OneTextTemplate) else []

    def is_cut_before(self, span: Span) -> bool:
        """Whether text in front of a span has no influence on its ids: it begins with a control token of the template."""
        return not span.literal and str(span.content).startswith(tuple(self._control.ids))

    def to_ids(self, run: Sequence[Span], *, behind_visual: bool = False) -> tuple[list[int], list[Span]]:
        """The ids of consecutive spans, tokenised together, and the span that each of them begins in.

        Where one token would join learned and given text ("\\n" of a header with the first "\\n" of an answer), the text
        is cut there and both are tokenised by themselves, as in generation.
        """
        lead = self._lead if behind_visual else []
        ids, offsets, starts = self._tokenize_together([*lead, *run])
        ids, offsets, starts = ids[len(lead) :], offsets[len(lead) :], starts[len(lead) :]
        cut = _find_straddled_span(run, starts, offsets)
        if cut is None:
            return list(ids), [run[bisect_right(starts, start) - 1] for start, _ in offsets]
        before, owners_before = self.to_ids(run[:cut], behind_visual=behind_visual)
        behind, owners_behind = self.to_ids(run[cut:], behind_visual=behind_visual)
        return before + behind, owners_before + owners_behind

    def _tokenize_together(self, run: Sequence[Span]) -> tuple[Sequence[int], Offsets, list[int]]:
        """Ids of the spans' whole text, the characters (start, end) of each, and the start of each span."""
        texts = [str(span.content) for span in run]
        starts = [0, *accumulate(map(len, texts))][:-1]
        encoding = self._tokenizer("".join(texts), add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        has_control_in_message = any(
            span.literal
            for token, (start, end) in zip(ids, offsets, strict=True)
            if token in self._control.numbers
            for span in run[bisect_right(starts, start) - 1 : bisect_right(starts, end - 1)]
        )
        if has_control_in_message:
            return self._control.alias_tokenizer.tokenize_together(run)
        return ids, offsets, starts


def make_prompt_spans(template: ChatTemplate, messages: Sequence[Message]) -> list[Span]:
    """Messages up to the beginning of the answer.

    Earlier answers have `learn` as in training, so that they are cut into tokens as in training: behind a
    `RewritingTemplate` no earlier answer is learned.
    """
    if has_capability(template, RewritingTemplate):
        messages = [replace(message, learn=False) for message in messages]
    return [*template.to_spans(messages), *template.open_answer()]


@dataclass(frozen=True, slots=True)
class _AliasTokenizer:
    """A text tokenizer whose control tokens have secret names: the same ids for a template's own text, and no others."""

    backend: Tokenizer
    names: Mapping[str, str]
    pattern: re.Pattern[str]

    @classmethod
    def from_backend(cls, backend: Tokenizer, control: Mapping[str, int]) -> _AliasTokenizer:
        # Drawn anew in every process. Private characters, which no text of the tokenizer has.
        secret = secrets.token_hex(8)
        names = {text: f"\U000f0000{secret}{number}\U000f0001" for text, number in control.items()}
        settings = json.loads(backend.to_str())
        for token in settings["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename_tokens(settings["model"], names)
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return cls(type(backend).from_str(json.dumps(settings)), names, re.compile(pattern))

    def tokenize_together(self, run: Sequence[Span]) -> tuple[Sequence[int], Offsets, list[int]]:
        """As `SpanTokenizer._tokenize_together`, with control tokens in the template's own spans only."""
        texts = [str(span.content) for span in run]
        texts = [
            text if span.literal else self.pattern.sub(lambda match: self.names[match[0]], text)
            for span, text in zip(run, texts, strict=True)
        ]
        starts = [0, *accumulate(map(len, texts))][:-1]
        encoding = self.backend.encode("".join(texts), add_special_tokens=False)
        return encoding.ids, encoding.offsets, starts


def _rename_tokens(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens of a model of the tokenizers library (BPE, WordPiece, WordLevel, Unigram), in place."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = ((pair, pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
        model["merges"] = [pair for pair, halves in pairs if "".join(halves) not in names]


def _find_straddled_span(run: Sequence[Span], starts: list[int], offsets: Offsets) -> int | None:
    """The first span at whose start `learn` changes in the middle of a token.

    A token reaches back to the end of the one before it: the offsets of some tokenizers (Llama 3's) leave out the space that
    a token begins with.
    """
    edges = {starts[i]: i for i in range(1, len(run)) if run[i].learn != run[i - 1].learn}
    ends = [end for _, end in offsets]
    if edges.keys() <= set(ends) and ends == sorted(ends):
        return None
    reaches = zip([starts[0] if starts else 0, *ends], ends, strict=False)
    straddled = [edges[c] for begin, end in reaches for c in range(begin + 1, end) if c in edges]
    return min(straddled, default=None)
