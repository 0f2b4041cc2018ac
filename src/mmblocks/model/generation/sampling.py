"""Next tokens from logits, in the order of transformers' `generate`, each sequence by random numbers of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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


class TokenSampler:
    """Next tokens from logits, by the processors that transformers' `generate` would use, in its order.

    A repetition penalty that `decoding` does not have, and n-grams that must not be repeated, come from the checkpoint's
    generation_config (Qwen2's 1.1). end_tokens: ids that are not drawn before `min_new_tokens`.
    """

    def __init__(
        self, backbone: CausalLM, decoding: Decoding, end_tokens: Sequence[int], keys: Sequence[RandomKey]
    ) -> None:
        self._processors = _list_processors(backbone, decoding, end_tokens)
        self._numbers = RandomNumbers(decoding.seed, keys) if decoding.temperature > 0 else None

    def __call__(self, written: Tensor, logits: Tensor) -> Tensor:
        """(sequences,) next tokens. written: (sequences, tokens) so far; logits: (sequences, vocabulary)."""
        scores = logits.float()
        for processor in self._processors:
            scores = processor(written, scores)  # type: ignore[arg-type]
        if self._numbers is None:
            return scores.argmax(-1)
        sums = scores.softmax(-1).double().cumsum(-1)
        drawn = self._numbers.draw().to(sums.device) * sums[:, -1]
        return torch.searchsorted(sums, drawn[:, None], right=True).squeeze(1)


def _list_processors(backbone: CausalLM, decoding: Decoding, end_tokens: Sequence[int]) -> list[LogitsProcessor]:
    from transformers.generation import logits_process

    own = getattr(backbone.lm, "generation_config", None)
    penalty, ngram_size = decoding.repetition_penalty, getattr(own, "no_repeat_ngram_size", None)
    penalty = getattr(own, "repetition_penalty", None) if penalty is None else penalty
    processors: list[LogitsProcessor] = []
    if penalty is not None and penalty != 1.0:
        processors.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty=float(penalty)))
    if ngram_size:
        processors.append(logits_process.NoRepeatNGramLogitsProcessor(ngram_size))
    if decoding.min_new_tokens and end_tokens:
        device = str(backbone.lm.device)
        processors.append(
            logits_process.MinNewTokensLengthLogitsProcessor(0, decoding.min_new_tokens, [*end_tokens], device=device)
        )
    if decoding.temperature > 0:
        if decoding.temperature != 1.0:
            processors.append(logits_process.TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k:
            processors.append(logits_process.TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1.0:
            processors.append(logits_process.TopPLogitsWarper(decoding.top_p))
    return processors


class RandomNumbers:
    """Uniform random numbers, for each sequence from a generator of its own: the same whatever else is drawn.

    Without a seed, torch's generator draws one.
    """

    def __init__(self, seed: int | None, keys: Sequence[RandomKey]) -> None:
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._generators = [np.random.default_rng((seed, *key)) for key in keys]
        self._drawn = np.empty((0, len(keys)))

    def draw(self) -> Tensor:
        """(sequences,) float64, at least 0 and below 1."""
        if not len(self._drawn):
            self._drawn = np.stack([generator.random(DRAWS_AT_ONCE) for generator in self._generators], axis=1)
        numbers, self._drawn = self._drawn[0], self._drawn[1:]
        return torch.from_numpy(numbers).clamp(max=1 - 2**-40)  # so that no product with a sum is rounded up to the sum
