"""Decoding settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from mmblocks.errors import ConfigError
from mmblocks.settings import list_settings

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM


class Streamer(Protocol):
    """What takes tokens as they are drawn: one of transformers' streamers, or the like."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


MAX_NEW_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding settings. temperature 0 is greedy; above it, tokens are sampled within `top_p` and `top_k`.

    seed: of draws. What is drawn for a prompt does not depend on the other prompts of a call.
    stop: texts that end an answer, beside the ends of the model; an answer is cut where the first of them begins.
    min_new_tokens: so many tokens are written before an end token may be. A stop text ends an answer at any time.
    repetition_penalty: above 1 against tokens that were written before; None is the checkpoint's own.
    log_probs: whether results have the log-probabilities of their tokens.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    repetition_penalty: float | None = None
    log_probs: bool = False

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
                f"stop={self.stop}; a stop text has at least one character" * ("" in self.stop),
                f"min_new_tokens={self.min_new_tokens}; write 0 or more, up to max_new_tokens={self.max_new_tokens}"
                * (not 0 <= self.min_new_tokens <= self.max_new_tokens),
                f"repetition_penalty={self.repetition_penalty}; write a number above 0, or 1 for none"
                * (self.repetition_penalty is not None and self.repetition_penalty <= 0),
            ]
        if faults := [fault for fault in faults if fault]:
            raise ConfigError(f"decoding: {'; '.join(faults)}.")
        object.__setattr__(self, "stop", tuple(self.stop))

    def require_fitting_length(self, backbone: CausalLM) -> None:
        """Raise `ConfigError` for answers longer than the model's sequence limit, before memory is allocated."""
        most = getattr(backbone, "max_tokens", None)
        if most is not None and self.max_new_tokens > most:
            raise ConfigError(
                f"decoding: max_new_tokens={self.max_new_tokens}, but the model takes max_tokens={most} in all; write less."
            )
