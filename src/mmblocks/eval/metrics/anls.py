"""Average normalised Levenshtein similarity of one question (DocVQA, InfoVQA, ST-VQA)."""

from collections.abc import Sequence

from mmblocks.eval.metrics.sequences import edit_distance

THRESHOLD = 0.5
"""A similarity below counts as 0."""


def score_lmms(answer: str, references: Sequence[str]) -> float:
    """As lmms-eval and VLMEvalKit do: the distance of collapsed texts, by the length of the raw ones.

    So blanks around an answer lower its penalty. Two empty texts are equal.
    """
    similarity = max(1 - _compare_collapsed(answer, reference) for reference in references)
    return similarity if similarity >= THRESHOLD else 0.0


def score_stvqa(answer: str, references: Sequence[str]) -> float:
    """As LLaVA's ST-VQA evaluator does: stripped texts and their lengths. Two empty texts, on which it fails, are equal."""
    return max(_measure_stripped(answer, reference) for reference in references)


def _compare_collapsed(answer: str, reference: str) -> float:
    length = max(len(answer.upper()), len(reference.upper()))  # "ß" in upper case is two letters
    return edit_distance(_collapse_blanks(answer), _collapse_blanks(reference)) / length if length else 0.0


def _collapse_blanks(text: str) -> str:
    return " ".join(text.lower().split())


def _measure_stripped(answer: str, reference: str) -> float:
    answer, reference = answer.lower().strip(), reference.lower().strip()
    length = max(len(answer), len(reference))
    similarity = 1 - edit_distance(answer, reference) / length if length else 1.0
    return similarity if similarity >= THRESHOLD else 0.0
