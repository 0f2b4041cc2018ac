"""Next tokens from logits, in the order of transformers' `generate`, each sequence by random numbers of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmblocks.model.generation.decoding import Decoding

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from mmblocks.backbones.causal_lm import CausalLM

DRAWS_AT_ONCE = 64
RandomKey = tuple[int, int]
"""What tells the random numbers of a sequence from those of others under one seed: its prompt and its number among the
samples of that prompt."""


def make_prompt_key(ids: Tensor) -> int:
    """A number for the ids (tokens,) of a prompt. Prompts that differ in their visuals only may have the same."""
    return zlib.crc32(ids.cpu().numpy().tobytes())


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """How a token is drawn from logits: settings of `Decoding` and of a checkpoint's generation_config.

    A repetition penalty that `decoding` does not have, and n-grams that must not be repeated, come from the checkpoint
    (Qwen2's 1.1). end_tokens: ids that are not drawn before `min_new_tokens`.
    """

    temperature: float
    top_k: int
    top_p: float
    min_new_tokens: int
    end_tokens: tuple[int, ...]
    repetition_penalty: float
    ngram_size: int
    log_probs: bool

    @classmethod
    def from_settings(cls, backbone: CausalLM, decoding: Decoding, end_tokens: Sequence[int]) -> SamplingRule:
        """The rule of `decoding` for a backbone."""
        own = getattr(backbone.lm, "generation_config", None)
        penalty = decoding.repetition_penalty
        penalty = getattr(own, "repetition_penalty", None) if penalty is None else penalty
        return cls(
            float(decoding.temperature),  # transformers takes no whole numbers
            decoding.top_k,
            float(decoding.top_p),
            decoding.min_new_tokens if end_tokens else 0,
            tuple(end_tokens),
            1.0 if penalty is None else float(penalty),
            getattr(own, "no_repeat_ngram_size", None) or 0,
            decoding.log_probs,
        )

    @property
    def reads_written(self) -> bool:
        """Whether what is drawn depends on the tokens before."""
        return bool(self.repetition_penalty != 1.0 or self.ngram_size or self.min_new_tokens)

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can draw: n-grams are compared on the host."""
        return not self.ngram_size


class TokenSampler:
    """Next tokens from logits, by the processors that transformers' `generate` would use, in its order."""

    def __init__(self, rule: SamplingRule, device: torch.device) -> None:
        self._processors = _list_processors(rule, device)
        self._is_greedy = rule.temperature == 0

    def __call__(self, written: Tensor, logits: Tensor, numbers: Tensor) -> Tensor:
        """(sequences,) next tokens. written: (sequences, tokens) so far; logits: (sequences, vocabulary).

        numbers: (sequences,) float64, uniform random ones, which a greedy rule does not read.
        """
        scores = logits.float()
        for processor in self._processors:
            scores = processor(written, scores)  # type: ignore[arg-type]
        if self._is_greedy:
            return scores.argmax(-1)
        sums = scores.softmax(-1).double().cumsum(-1)
        return torch.searchsorted(sums, numbers[:, None] * sums[:, -1:], right=True).squeeze(1)


def _list_processors(rule: SamplingRule, device: torch.device) -> list[LogitsProcessor]:
    from transformers.generation import logits_process

    processors: list[LogitsProcessor] = []
    if rule.repetition_penalty != 1.0:
        processors.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty=rule.repetition_penalty))
    if rule.ngram_size:
        processors.append(logits_process.NoRepeatNGramLogitsProcessor(rule.ngram_size))
    if rule.min_new_tokens:
        processors.append(
            logits_process.MinNewTokensLengthLogitsProcessor(
                0, rule.min_new_tokens, [*rule.end_tokens], device=str(device)
            )
        )
    if rule.temperature > 0:
        if rule.temperature != 1.0:
            processors.append(logits_process.TemperatureLogitsWarper(rule.temperature))
        if rule.top_k:
            processors.append(logits_process.TopKLogitsWarper(rule.top_k))
        if rule.top_p < 1.0:
            processors.append(logits_process.TopPLogitsWarper(rule.top_p))
    return processors


class RandomNumbers:
    """Uniform random numbers, for each sequence from a generator of its own: the same whatever else is drawn.

    Without a seed, torch's generator draws one. pin_memory: for copies to a GPU that do not wait.
    """

    def __init__(self, seed: int | None, keys: Sequence[RandomKey], *, pin_memory: bool = False) -> None:
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._generators = [np.random.default_rng((seed, *key)) for key in keys]
        self._pin_memory = pin_memory
        self._drawn: list[Tensor] = []

    def draw(self) -> Tensor:
        """(sequences,) float64 on the host, at least 0 and below 1."""
        if not self._drawn:
            block = np.stack([generator.random(DRAWS_AT_ONCE) for generator in self._generators], axis=1)
            numbers = torch.from_numpy(block).clamp(
                max=1 - 2**-40
            )  # so that no product with a sum is rounded up to the sum
            self._drawn = [*(numbers.pin_memory() if self._pin_memory else numbers).flip(0)]
        return self._drawn.pop()
