"""AI2D: a letter with a period at the start, else the whole text."""

import re

from mmblocks.eval.metrics.gqa import score_exact

LETTER_AT_START = re.compile(r"\s*([A-Z])\.")


def read_letter(answer: str) -> str:
    """The letter that an answer begins with, or the answer as it is."""
    found = LETTER_AT_START.match(answer)
    return found.group(1) if found else answer


def score_letter(answer: str, letter: str) -> float:
    """As lmms-eval does: exact without case and punctuation, so "(a)" is right for "A"."""
    return score_exact(read_letter(answer), letter)
