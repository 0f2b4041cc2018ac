"""LongBench-Write and LongWrite-Ruler: length, and quality as a judge rates it."""

import json
import re
from collections.abc import Iterable, Mapping
from statistics import fmean

from mmblocks.errors import DataError

DIMENSIONS = ("Relevance", "Accuracy", "Coherence", "Clarity", "Breadth and Depth", "Reading Experience")
MIDDLE = 3
"""What a rating without a dimension counts there."""
CHARACTER = re.compile("[\u4e00-\u9fff]")
WORD = re.compile(r"\b[a-zA-Z]+\b")


def count_words(text: str) -> int:
    """Chinese characters and runs of ASCII letters; a run beside a digit, an underscore or another letter is none."""
    return len(CHARACTER.findall(text)) + len(WORD.findall(text))


def score_length(wanted: int, written: int) -> float:
    """From 100 at the wanted number of words to 0 at four times as many or a third; nothing written, 0."""
    if wanted <= 0:
        raise DataError(f"LongBench-Write: a wanted length of {wanted} words; it needs at least one.")
    if not written:
        return 0.0
    if written > wanted:
        return 100 * max(0.0, 1.0 - (written / wanted - 1) / 3)
    return 100 * max(0.0, 1.0 - (wanted / written - 1) / 2)


def read_rating(reply: str) -> dict[str, float] | None:
    """The six ratings of a judge's JSON, fenced or not; None where one is missing or no number."""
    _, fence, rest = reply.partition("```json\n")
    text = rest.partition("\n```")[0] if fence else reply
    try:
        rating = json.loads(text.replace("\n", ""))
        return {name: float(rating[name]) for name in DIMENSIONS}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def summarise_quality(ratings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each dimension the mean rating from 1 to 5 as 0 to 100, and "total", their mean; nothing without a rating."""
    ratings = list(ratings)
    if not ratings:
        return {}
    scores = {name: (fmean(float(r.get(name, MIDDLE)) for r in ratings) - 1) * 25 for name in DIMENSIONS}
    return scores | {"total": fmean(scores.values())}
