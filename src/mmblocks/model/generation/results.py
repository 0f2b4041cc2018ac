"""What a model wrote, and how likely given texts are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""Why an answer ended: at an end token or a stop text, or at `max_new_tokens` without either."""


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens of an answer, without the end token. The fields are those of `Result`."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    answer_tokens: int
    log_probs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """An answer.

    ids: the tokens that were drawn, without an end token; those of a stop text are among them.
    text: of `ids`, up to the first stop text, without special tokens and without white space at its ends.
    finish_reason: "stop" also where an end comes with the last token that is allowed.
    prompt_tokens: rows of the prompt, those of visuals among them. answer_tokens: all tokens that were drawn, an end token
        among them.
    log_probs: natural logarithms of the model's own probabilities of `ids`, as `score` computes them: before penalties,
        temperature, top_k and top_p. None unless `Decoding.log_probs` asks for them.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    answer_tokens: int
    log_probs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation of a prompt is.

    log_prob: natural logarithm of its probability, the sum of `log_probs`. tokens: how many it has. is_greedy: whether each
    of its tokens is the most likely one. log_probs: of each token, given the prompt and the tokens before it.
    """

    log_prob: float
    tokens: int
    is_greedy: bool
    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A token as it is drawn. log_prob: as `Result.log_probs`. top: the likeliest tokens and their log-probabilities."""

    id: int
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
