"""LLaVA-Bench: the judge's reply and the relative score."""

import math
import re
from collections.abc import Iterable, Sequence

from mmblocks.eval.metrics.means import average_by

FAILED = (-1.0, -1.0)
"""What the originals keep for a reply without two numbers, and average with the rest. Here such a reply is left out."""
NOT_ASKED = -999
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Pair = tuple[float, float]
"""Scores of the reference and of the model, 1 to 10."""


def read_scores(reply: str) -> Pair | None:
    """As LLaVA does: the first line is two numbers, parted by one blank or comma."""
    words = reply.partition("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, words)
    except ValueError:
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def read_scores_lmms(reply: str) -> Pair | None:
    """As lmms-eval does: the first two numbers of the first line."""
    numbers = NUMBER.findall(reply.strip().partition("\n")[0])
    return (float(numbers[0]), float(numbers[1])) if len(numbers) > 1 else None


def compute_relative_score(pairs: Iterable[Pair]) -> float | None:
    """The model's mean in percent of the reference's, both rounded to three places. Pairs with -999 are left out."""
    return _summarise_pairs([pair for pair in pairs if NOT_ASKED not in pair])[0]


def summarise(rows: Iterable[tuple[str, Pair]]) -> dict[str, tuple[float | None, float, float]]:
    """From (category, pair): of "all" and each category the relative score and ten times either mean."""
    groups: dict[str, list[Pair]] = {"all": []}
    for category, pair in rows:
        groups["all"].append(pair)
        groups.setdefault(category, []).append(pair)
    return {category: _summarise_pairs(groups[category]) for category in sorted(groups) if groups[category]}


def _summarise_pairs(pairs: Sequence[Pair]) -> tuple[float | None, float, float]:
    means = average_by([("reference", first) for first, _ in pairs] + [("model", second) for _, second in pairs])
    reference, model = round(means.get("reference", 0.0), 3), round(means.get("model", 0.0), 3)
    relative = round(model / reference * 100, 1) if reference else None
    return relative, round(reference * 10, 1), round(model * 10, 1)
