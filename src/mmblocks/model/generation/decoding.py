"""Decoding settings, sampling and stop sequences, in the order of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mmblocks.errors import ConfigError
from mmblocks.settings import list_settings

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from mmblocks.backbones.causal_lm import CausalLM
    from mmblocks.model.onevision import OneVision


class Streamer(Protocol):
    """What takes tokens as they are drawn: one of transformers' streamers, or the like."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


MAX_NEW_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding settings. temperature 0 is greedy; above it, tokens are sampled within `top_p` and `top_k`."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        mistyped = [fault for s in list_settings(Decoding).values() if (fault := s.find_fault(getattr(self, s.name)))]
        faults = [f"{fault.message} {fault.cure}".rstrip(".") for fault in mistyped]
        if not faults:
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
        if faults := [fault for fault in faults if fault]:
            raise ConfigError(f"decoding: {'; '.join(faults)}.")

    def require_fitting_length(self, backbone: CausalLM) -> None:
        """Raise `ConfigError` for answers longer than the model's sequence limit, before memory is allocated."""
        most = getattr(backbone, "max_tokens", None)
        if most is not None and self.max_new_tokens > most:
            raise ConfigError(
                f"decoding: max_new_tokens={self.max_new_tokens}, but the model takes max_tokens={most} in all; write less."
            )


@dataclass(frozen=True, slots=True)
class StopSequences:
    """What ends an answer: token ids, and texts of several tokens; whichever comes first."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    @classmethod
    def from_model(cls, model: OneVision) -> StopSequences:
        """The stop texts of a model's chat template, as its text tokenizer encodes them, and its checkpoint's end tokens."""
        tokenizer = model.backbone.text_tokenizer
        ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in model.template.stop}
        tokens = [i[0] for i in ids.values() if len(i) == 1]
        every = dict.fromkeys((*tokens, *find_end_tokens(model.backbone)))
        return cls(tuple(every), tuple(text for text, i in ids.items() if len(i) != 1))


def find_end_tokens(backbone: CausalLM) -> tuple[int, ...]:
    """The ids that end an answer in a checkpoint's generation_config, which has one or a list (Qwen2-Instruct's two)."""
    own = getattr(getattr(backbone.lm, "generation_config", None), "eos_token_id", None)
    return tuple(own) if isinstance(own, Sequence) else () if own is None else (own,)


class TokenSampler:
    """Next tokens from logits, by the processors that transformers' `generate` would use, in its order.

    Repetition penalties come from the checkpoint's generation_config (Qwen2's 1.1), sampling settings from `decoding`.
    """

    def __init__(self, backbone: CausalLM, decoding: Decoding) -> None:
        from transformers.generation import logits_process

        own = getattr(backbone.lm, "generation_config", None)
        penalty = getattr(own, "repetition_penalty", None)
        ngram_size = getattr(own, "no_repeat_ngram_size", None)
        self._is_sampling = decoding.temperature > 0
        self._processors: list[LogitsProcessor] = []
        if penalty is not None and penalty != 1.0:
            self._processors.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty=penalty))
        if ngram_size:
            self._processors.append(logits_process.NoRepeatNGramLogitsProcessor(ngram_size))
        if self._is_sampling and decoding.temperature != 1.0:
            self._processors.append(logits_process.TemperatureLogitsWarper(decoding.temperature))
        if self._is_sampling and decoding.top_k:
            self._processors.append(logits_process.TopKLogitsWarper(decoding.top_k))
        if self._is_sampling and decoding.top_p < 1.0:
            self._processors.append(logits_process.TopPLogitsWarper(decoding.top_p))

    def __call__(self, written: Tensor, logits: Tensor) -> Tensor:
        """(sequences,) next tokens. written: (sequences, tokens) so far; logits: (sequences, vocabulary)."""
        scores = logits.float()
        for processor in self._processors:
            scores = processor(written, scores)  # type: ignore[arg-type]
        if self._is_sampling:
            return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
        return scores.argmax(-1)


class EndDetector:
    """Which answers have ended.

    tokens: the ids that end one. padding: the id that fills the row after an end.
    """

    def __init__(self, backbone: CausalLM, stop: StopSequences, device: torch.device) -> None:
        from transformers import StopStringCriteria

        self.tokens = stop.tokens
        self.padding = self.tokens[0] if self.tokens else 0
        self._tokens = torch.tensor(self.tokens, dtype=torch.int64, device=device)
        self._texts = StopStringCriteria(backbone.text_tokenizer, list(stop.texts)) if stop.texts else None

    def __call__(self, written: Tensor) -> Tensor:
        """(sequences,) bool: which of `written` (sequences, tokens) end with their last token."""
        ended = torch.isin(written[:, -1], self._tokens)
        return ended if self._texts is None else ended | self._texts(written, None)  # type: ignore[arg-type]


def cut_at_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Ids before the first stop token."""
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return list(ids[: ends[0]]) if ends else list(ids)
