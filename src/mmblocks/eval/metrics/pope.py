"""POPE: whether an object is there, by two rules."""

from collections import Counter
from collections.abc import Iterable

COUNTS = {("yes", "yes"): "TP", ("yes", "no"): "FP", ("no", "no"): "TN", ("no", "yes"): "FN"}
"""By prediction and label."""


def read_official(answer: str) -> str:
    """As POPE and LLaVA do: "no" where No, no or not is a word of the first sentence, else "yes"."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def read_lmms(answer: str) -> str | None:
    """As lmms-eval does: the whole answer is yes or no, case and outer blanks aside."""
    word = answer.lower().strip()
    return word if word in ("yes", "no") else None


def summarise_official(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Counts and ratios from (answer, label); yes_ratio is that of the predictions. A ratio without a case is 0."""
    pairs = [(read_official(answer), "no" if label == "no" else "yes") for answer, label in pairs]
    yes_ratio = _divide(sum(predicted == "yes" for predicted, _ in pairs), len(pairs))
    counts = _count_outcomes(pairs)
    return counts | _compute_ratios(counts, len(pairs)) | {"yes_ratio": yes_ratio}


def summarise_lmms(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Ratios from (answer, label). An answer that is neither is wrong, yet in no precision and no recall.

    yes_ratio is that of the labels, as in lmms-eval.
    """
    pairs = [(read_lmms(answer) or "", label.lower().strip()) for answer, label in pairs]
    yes_ratio = _divide(sum(label == "yes" for _, label in pairs), len(pairs))
    return _compute_ratios(_count_outcomes(pairs), len(pairs)) | {"yes_ratio": yes_ratio}


def _count_outcomes(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    counts = Counter(COUNTS[pair] for pair in pairs if pair in COUNTS)
    return {name: counts[name] for name in ("TP", "FP", "TN", "FN")}


def _compute_ratios(counts: dict[str, float], total: int) -> dict[str, float]:
    precision = _divide(counts["TP"], counts["TP"] + counts["FP"])
    recall = _divide(counts["TP"], counts["TP"] + counts["FN"])
    return {
        "accuracy": _divide(counts["TP"] + counts["TN"], total),
        "precision": precision,
        "recall": recall,
        "f1": _divide(2 * precision * recall, precision + recall),
    }


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
