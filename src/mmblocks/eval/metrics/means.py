"""Means of scores, by group."""

from collections.abc import Iterable
from statistics import fmean


def average_by(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each group, in the order in which the groups come."""
    groups: dict[str, list[float]] = {}
    for group, score in scores:
        groups.setdefault(group, []).append(score)
    return {group: fmean(values) for group, values in groups.items()}


def average_of_groups(scores: Iterable[tuple[str, float]]) -> float:
    """The mean over groups of their means; 0 where there are none."""
    means = average_by(scores)
    return fmean(means.values()) if means else 0.0
