"""Where an answer ends: end tokens, and stop texts, whichever tokens they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmblocks.model.generation.results import AnswerTokens, FinishReason, Result

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM
    from mmblocks.model.onevision import OneVision

BROKEN_CHARACTER = "\ufffd"
"""What text tokenizers write for bytes that are no whole character, perhaps not yet."""
MAX_PENDING_TOKENS = 8
"""Bytes that are no character after so many tokens never become one."""


@dataclass(frozen=True, slots=True)
class StopSequences:
    """What ends an answer: token ids, and texts of any tokens; whichever comes first."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    @classmethod
    def from_model(cls, model: OneVision, texts: Sequence[str] = ()) -> StopSequences:
        """The stop texts of a model's chat template, its checkpoint's end tokens, and further `texts`.

        A text of the template that is one token is an end token, and so is a further text that is a special token.
        """
        tokenizer = model.backbone.text_tokenizer
        ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in (*model.template.stop, *texts)}
        is_token = {
            text: len(i) == 1 and (text in model.template.stop or i[0] in tokenizer.all_special_ids)
            for text, i in ids.items()
        }
        tokens = [i[0] for text, i in ids.items() if is_token[text]]
        every = dict.fromkeys((*tokens, *find_end_tokens(model.backbone)))
        return cls(tuple(every), tuple(text for text in ids if not is_token[text]))

    def make_result(self, backbone: CausalLM, answer: AnswerTokens, prompt_tokens: int) -> Result:
        """An answer with its text."""
        text = backbone.text_tokenizer.decode(answer.ids, skip_special_tokens=True)
        end = find_stop_text(text, self.texts)
        return Result(
            answer.ids,
            text[:end].strip(),
            answer.finish_reason if end is None else "stop",
            prompt_tokens,
            answer.answer_tokens,
            answer.log_probs,
        )


def find_end_tokens(backbone: CausalLM) -> tuple[int, ...]:
    """The ids that end an answer in a checkpoint's generation_config, which has one or a list (Qwen2-Instruct's two)."""
    own = getattr(getattr(backbone.lm, "generation_config", None), "eos_token_id", None)
    return tuple(own) if isinstance(own, Sequence) else () if own is None else (own,)


def find_stop_text(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop texts begins; None where there is none."""
    return min((begin for stop in stops if (begin := text.find(stop)) >= 0), default=None)


def cut_pieces(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces of a text up to the first stop text; all are read. What may be the beginning of one waits for the next piece."""
    text, has_ended = "", False
    for piece in pieces:
        if has_ended:
            continue
        text += piece
        end = find_stop_text(text, stops)
        has_ended = end is not None
        if end is None:
            begins = (i for i in range(len(text)) if any(stop.startswith(text[i:]) for stop in stops))
            end = next(begins, len(text))
        if end:
            yield text[:end]
        text = "" if has_ended else text[end:]
    if text:
        yield text


class AnswerText:
    """The text of an answer while it is written: pieces that no later token changes, which together are `Result.text`."""

    def __init__(self, backbone: CausalLM, stop: StopSequences) -> None:
        self._tokenizer, self._stops = backbone.text_tokenizer, stop.texts
        self._end_tokens = frozenset(stop.tokens)
        self._ids: list[int] = []
        self._begin = self._end = 0  # tokens that were decoded last, as context of the next
        self._known = ""
        self._num_given = 0

    def append_token(self, token: int) -> str:
        """What can be read now that was not known before; "" while a character, the end or a stop text may be unfinished."""
        if token in self._end_tokens:
            return ""
        self._ids.append(token)
        before, text = self._decode(self._ids[self._begin : self._end]), self._decode(self._ids[self._begin :])
        if text.endswith(BROKEN_CHARACTER) and len(self._ids) - self._end < MAX_PENDING_TOKENS:
            return ""
        self._known += text[len(before) :]
        self._begin, self._end = self._end, len(self._ids)
        stop = find_stop_text(self._known, self._stops)
        return self._give_up_to(_find_possible_stop(self._known, self._stops) if stop is None else stop)

    def finish(self, text: str) -> str:
        """The rest. text: that of the result."""
        return text[self._num_given :]

    def _give_up_to(self, end: int) -> str:
        """White space at the ends is no part of an answer."""
        piece = self._known[:end].strip()[self._num_given :]
        self._num_given += len(piece)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _find_possible_stop(text: str, stops: Sequence[str]) -> int:
    """Where a stop text may have begun that is not complete; the end where none has."""
    longest = max(map(len, stops), default=0)
    begins = range(max(0, len(text) - longest), len(text))
    return next((i for i in begins if any(stop.startswith(text[i:]) for stop in stops)), len(text))


class AnswerWriter:
    """One answer while it is written: its tokens, and whether it has ended."""

    def __init__(self, backbone: CausalLM, stop: StopSequences) -> None:
        self.finish_reason: FinishReason | None = None
        self._end_tokens = frozenset(stop.tokens)
        self._texts = _StopTextFinder(backbone.text_tokenizer, stop.texts) if stop.texts else None
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self.num_tokens = 0

    @property
    def is_unfinished(self) -> bool:
        return self.finish_reason is None

    def append_token(self, token: int, log_prob: float | None) -> None:
        """Take the next token."""
        self.num_tokens += 1
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return
        self._ids.append(token)
        self._log_probs += [] if log_prob is None else [log_prob]
        if self._texts is not None and self._texts.has_stop_text(self._ids):
            self.finish_reason = "stop"

    def to_tokens(self, *, log_probs: bool) -> AnswerTokens:
        """What was written up to now."""
        given = tuple(self._log_probs) if log_probs else None
        return AnswerTokens(tuple(self._ids), self.finish_reason or "length", self.num_tokens, given)


class _StopTextFinder:
    """Whether a growing answer holds a stop text. Of earlier tokens only the last few are decoded again."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._context = max(map(len, stops)) - 1
        self._tail = ""  # the last characters that are known, of which a stop text may be made
        self._begin = self._end = 0  # tokens that were decoded last, as context of the next

    def has_stop_text(self, ids: Sequence[int]) -> bool:
        """ids: those of the last call and one more."""
        known, text = self._decode(ids[self._begin : self._end]), self._decode(ids[self._begin :])
        text = self._tail + text[len(known) :]
        if find_stop_text(text, self._stops) is not None:
            return find_stop_text(self._decode(ids), self._stops) is not None
        if not text.endswith(BROKEN_CHARACTER) or len(ids) - self._end >= MAX_PENDING_TOKENS:
            self._tail = text[-self._context :] if self._context else ""
            self._begin, self._end = self._end, len(ids)
        return False

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
