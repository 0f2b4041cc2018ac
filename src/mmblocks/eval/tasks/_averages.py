"""Means over scored documents, in percent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from mmblocks.eval.document import ScoredDocument

NO_ANSWER = "no_answer"


def average_scores(rows: Sequence[ScoredDocument], groups: Collection[str] = ()) -> dict[str, float]:
    """Of every metric the mean of all rows, then those by the values of the fields `groups`; and how many have no answer.

    A score that is None counts as 0.
    """
    metrics = dict.fromkeys(metric for row in rows for metric in row.scores)
    means = {metric: average_metric(rows, metric) for metric in metrics}
    for field in groups:
        for value, members in group_rows(rows, field).items():
            means |= {f"{metric}/{field}/{value}": average_metric(members, metric) for metric in metrics}
    return {**means, NO_ANSWER: count_unreadable(rows)}


def average_metric(rows: Sequence[ScoredDocument], metric: str) -> float:
    """The mean of a metric in percent over the rows that have it; 0 where none has."""
    scores = [row.scores[metric] or 0.0 for row in rows if metric in row.scores]
    return 100 * sum(scores) / len(scores) if scores else 0.0


def group_rows(rows: Sequence[ScoredDocument], field: str) -> Mapping[str, list[ScoredDocument]]:
    """Rows by the value of a field, in the order of their names; rows without it are left out."""
    members: dict[str, list[ScoredDocument]] = defaultdict(list)
    for row in rows:
        if (value := row.fields.get(field)) is not None:
            members[str(value)].append(row)
    return dict(sorted(members.items()))


def count_unreadable(rows: Sequence[ScoredDocument]) -> int:
    """How many rows have a score that is None."""
    return sum(any(score is None for score in row.scores.values()) for row in rows)


def list_judged(rows: Sequence[ScoredDocument], metric: str) -> Iterator[tuple[ScoredDocument, float]]:
    """The rows for which a judge gave a metric, with its value."""
    for row in rows:
        if (value := row.scores.get(metric)) is not None:
            yield row, value
