"""How answers are drawn and what ends them, in transformers' own order and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.errors import ConfigError
from mmblocks.settings import list_settings

MAX_NEW_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are drawn. temperature 0 is greedy; above it, tokens are sampled within `top_p` and `top_k`."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        mistyped = [fault for s in list_settings(Decoding).values() if (fault := s.find_fault(getattr(self, s.name)))]
        found = [f"{fault.message} {fault.cure}".rstrip(".") for fault in mistyped]
        if not found:
            faults = [
                f"max_new_tokens={self.max_new_tokens}; an answer has at least 1" * (self.max_new_tokens < 1),
                f"max_new_tokens={self.max_new_tokens}; write {MAX_NEW_TOKENS} or less"
                * (self.max_new_tokens > MAX_NEW_TOKENS),
                f"temperature={self.temperature}; write 0 for greedy, or more, up to 1000"
                * (not 0 <= self.temperature <= 1000),
                f"top_p={self.top_p}; write a share above 0 and up to 1" * (not 0 < self.top_p <= 1),
                f"top_k={self.top_k}; write 0 for all tokens, or more" * (self.top_k < 0),
                f"seed={self.seed}; write 0 or more" * ((self.seed or 0) < 0),
            ]
            found = [fault for fault in faults if fault]
        if found:
            raise ConfigError(f"decoding: {'; '.join(found)}.")

    def require_fitting_length(self, backbone: Any) -> None:
        """Raise `ConfigError` for answers longer than all that a model takes, before room is made for them."""
        most = getattr(backbone, "max_tokens", None)
        if most is not None and self.max_new_tokens > most:
            raise ConfigError(
                f"decoding: max_new_tokens={self.max_new_tokens}, but the model takes max_tokens={most} in all; write less."
            )


@dataclass(frozen=True, slots=True)
class StopSequences:
    """What ends an answer: single tokens, and texts that the tokenizer writes with several; the first that comes ends it."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    @classmethod
    def from_model(cls, model: Any) -> StopSequences:
        """The stop texts of a model's chat template, as its text tokenizer writes them, and its checkpoint's end tokens."""
        tokenizer = model.backbone.text_tokenizer
        ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in model.template.stop}
        tokens = [i[0] for i in ids.values() if len(i) == 1]
        every = dict.fromkeys((*tokens, *find_end_tokens(model.backbone)))
        return cls(tuple(every), tuple(text for text, i in ids.items() if len(i) != 1))


def find_end_tokens(backbone: Any) -> tuple[int, ...]:
    """The ids that end an answer by a checkpoint's generation_config, which names one or a list (Qwen2-Instruct's two)."""
    own = getattr(getattr(backbone.lm, "generation_config", None), "eos_token_id", None)
    return tuple(own) if isinstance(own, Sequence) else () if own is None else (own,)


class TokenSampler:
    """Next tokens out of logits, by the processors that transformers' `generate` would make, in its order.

    What a checkpoint's generation_config says of repetition (Qwen2's 1.1) holds; how tokens are drawn is `decoding`'s.
    """

    def __init__(self, backbone: Any, decoding: Decoding) -> None:
        self._sampled = decoding.temperature > 0
        self._processors = [*_against_repetition(backbone), *(_warpers(decoding) if self._sampled else ())]

    def __call__(self, written: Tensor, logits: Tensor) -> Tensor:
        """(sequences,) next tokens. written: (sequences, tokens) so far; logits: (sequences, vocabulary)."""
        scores = logits.float()
        for processor in self._processors:
            scores = processor(written, scores)
        if self._sampled:
            return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
        return scores.argmax(-1)


def _against_repetition(backbone: Any) -> list[Any]:
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    settings = getattr(backbone.lm, "generation_config", None)
    penalty = getattr(settings, "repetition_penalty", None)
    size = getattr(settings, "no_repeat_ngram_size", None)
    found: list[Any] = []
    if penalty is not None and penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(penalty=penalty))
    if size:
        found.append(NoRepeatNGramLogitsProcessor(size))
    return found


def _warpers(decoding: Decoding) -> list[Any]:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found: list[Any] = []
    if decoding.temperature != 1.0:
        found.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        found.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1.0:
        found.append(TopPLogitsWarper(decoding.top_p))
    return found


class EndDetector:
    """Which answers have ended.

    tokens: the ids that end one. padding: what stands behind it.
    """

    def __init__(self, backbone: Any, stop: StopSequences, device: torch.device) -> None:
        self.tokens = stop.tokens
        self.padding = self.tokens[0] if self.tokens else 0
        self._tokens = torch.tensor(self.tokens, dtype=torch.int64, device=device)
        self._texts = _stop_texts(backbone, stop)

    def __call__(self, written: Tensor) -> Tensor:
        """(sequences,) bool: which of `written` (sequences, tokens) end with their last token."""
        ended = torch.isin(written[:, -1], self._tokens)
        return ended if self._texts is None else ended | self._texts(written, None)


def _stop_texts(backbone: Any, stop: StopSequences) -> Any:
    if not stop.texts:
        return None
    from transformers import StopStringCriteria

    return StopStringCriteria(backbone.text_tokenizer, list(stop.texts))


def cut_at_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Ids before the first stop token."""
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return list(ids[: ends[0]]) if ends else list(ids)
