"""ActivityNet-QA: the judge's verdict and its aggregates."""

import ast
import warnings
from collections.abc import Iterable
from statistics import fmean

LONGEST = 2000
"""Characters of a verdict; a longer one is not read."""

Verdict = tuple[str, int]
"""Whether the answer is right ("yes", "no"; the judge may write another word), and a score from 0 to 5."""


def read_verdict(reply: str) -> Verdict | None:
    """As lmms-eval does: the Python dict between the first brace and the next closing one; its score without fractions."""
    _, brace, rest = reply.partition("{")
    text = rest.partition("}")[0]
    if not brace or len(text) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the judge's text
            fields = ast.literal_eval("{" + text + "}")
        verdict, score = fields["pred"].lower(), int(fields["score"])
    except (SyntaxError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError, RecursionError):
        return None
    return next((word for word in ("yes", "no") if word in verdict), fields["pred"]), score


def summarise(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The mean score, and the percent of "yes" among yes and no."""
    verdicts = list(verdicts)
    yes = sum("yes" in word.lower() for word, _ in verdicts)
    no = sum("no" in word.lower() and "yes" not in word.lower() for word, _ in verdicts)
    return {
        "score": fmean(score for _, score in verdicts) if verdicts else 0.0,
        "accuracy": yes / (yes + no) * 100 if yes + no else 0.0,
    }
