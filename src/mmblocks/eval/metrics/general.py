"""Metrics for anyone's data: each takes an answer and its references, of which the best counts. None: no answer."""

from collections.abc import Callable, Mapping, Sequence

from mmblocks.errors import DataError
from mmblocks.eval.metrics import anls
from mmblocks.eval.metrics.multiple_choice import extract_letter
from mmblocks.eval.metrics.normalise import drop_case_and_punctuation, normalise_m4c
from mmblocks.eval.metrics.rouge import score_plain
from mmblocks.eval.metrics.vqa import score_textvqa

ANNOTATORS = 10
"""From so many references on, VQA's soft accuracy; fewer are alternatives of which one is enough."""


def score_exact(answer: str, references: Sequence[str]) -> float | None:
    """Whether an answer is a reference, without case, punctuation and surplus blanks."""
    found = _simplify(answer)
    return float(found in [_simplify(reference) for reference in _require(references)]) if answer.strip() else None


def score_contains(answer: str, references: Sequence[str]) -> float | None:
    """Whether an answer holds a reference as whole words, without case and punctuation."""
    found = f" {_simplify(answer)} "
    held = [f" {_simplify(reference)} " in found for reference in _require(references)]
    return float(any(held)) if answer.strip() else None


def score_choice(answer: str, references: Sequence[str]) -> float | None:
    """Whether the letter of an answer is that of a reference; None where an answer has none."""
    letters = [extract_letter(reference) for reference in _require(references)]
    if None in letters:
        raise DataError(
            f"The reference {references[letters.index(None)]!r} is no letter from A to H, which metric=choice needs; "
            "write the letter of the right option, or use metric=exact."
        )
    letter = extract_letter(answer)
    return None if letter is None else float(letter in letters)


def score_anls(answer: str, references: Sequence[str]) -> float | None:
    """Normalised Levenshtein similarity, 0 below a half (DocVQA)."""
    return anls.score_lmms(answer, _require(references)) if answer.strip() else None


def score_vqa(answer: str, references: Sequence[str]) -> float | None:
    """VQA's soft accuracy of ten references; of fewer, whether one is the answer in VQA's normal form."""
    if not answer.strip():
        return None
    if len(_require(references)) >= ANNOTATORS:
        return score_textvqa(answer, references)
    return float(normalise_m4c(answer) in [normalise_m4c(reference) for reference in references])


def score_rouge_l(answer: str, references: Sequence[str]) -> float | None:
    """F1 of the longest common subsequence of words."""
    scores = [score_plain(answer, reference) for reference in _require(references)]
    return max(scores) if answer.strip() else None


METRICS: Mapping[str, Callable[[str, Sequence[str]], float | None]] = {
    "exact": score_exact,
    "contains": score_contains,
    "choice": score_choice,
    "anls": score_anls,
    "vqa": score_vqa,
    "rouge_l": score_rouge_l,
}


def _simplify(text: str) -> str:
    return " ".join(drop_case_and_punctuation(text).split())


def _require(references: Sequence[str]) -> Sequence[str]:
    if not references:
        raise DataError("No reference to score an answer against; give each record an answer.")
    return references
