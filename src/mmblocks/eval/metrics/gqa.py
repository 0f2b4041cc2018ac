"""Exact match of GQA."""

from mmblocks.eval.metrics.normalise import drop_case_and_punctuation


def score_exact(answer: str, reference: str) -> float:
    """As lmms-eval does: without case and punctuation; articles, number words and blanks count."""
    return float(drop_case_and_punctuation(answer) == drop_case_and_punctuation(reference))
