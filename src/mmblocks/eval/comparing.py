"""Two runs on the same documents: by how much one is better, and which answers became right or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mmblocks.errors import DataError
from mmblocks.eval.metrics.direction import is_lower_better
from mmblocks.eval.predictions import Prediction, read_predictions
from mmblocks.eval.statistics import PairedDifference, bootstrap_interval, compare_pairs, group_by_cluster

MAX_LISTED = 20
"""Changed documents of a task that the Markdown lists."""
REFERENCE_FIELDS = ("references", "answers", "answer", "gpt_answer")
"""Fields of records that hold what an answer is scored against; the first one counts."""
Pair = tuple[Prediction, Prediction]


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """A document whose score of a metric differs between two runs."""

    metric: str
    before: Prediction
    after: Prediction

    @property
    def difference(self) -> float:
        """Second minus first; an answer that could not be read counts as 0."""
        return _get_score(self.after, self.metric) - _get_score(self.before, self.metric)

    @property
    def is_better(self) -> bool:
        return (self.difference < 0) == is_lower_better(self.metric)

    @property
    def reference(self) -> object:
        """What the record says is right, None where no field of it does."""
        fields = self.before.fields or {}
        return next((fields[name] for name in REFERENCE_FIELDS if name in fields), None)


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """A metric of the documents that have it in both runs.

    difference: the mean of second minus first. clusters: images or videos that documents share; each other document is one of
    its own. is_share: all scores are from 0 to 1, and shown in percent. paired: the difference with its 95 % interval by the
    central limit theorem; bootstrap: the interval by resampling. Both are None of fewer than two documents or clusters.
    """

    metric: str
    difference: float
    documents: int
    clusters: int
    is_share: bool
    paired: PairedDifference | None
    bootstrap: tuple[float, float] | None

    def format_value(self, score: float, sign: str = "") -> str:
        """A score or a difference for people. sign: "+" shows that of positive numbers, too."""
        return format(100 * score, f"{sign}.1f") if self.is_share else format(score, f"{sign}.3f")


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """A task in two runs. documents: that both have answered. unpaired: answered in one run only. unequal: documents of the
    same key about which the runs were asked something else. changes: what differs, of the first metric.
    """

    task: str
    documents: int
    unpaired: int
    unequal: int
    metrics: Sequence[MetricComparison]
    changes: Sequence[ScoreChange]


def compare_runs(first: Path, second: Path) -> list[TaskComparison]:
    """Every task that both folders of `mmblocks eval --out` hold. Raises `DataError` where they share no task or no document."""
    tasks = [{path.parent.name for path in folder.glob("*/settings.json")} for folder in (first, second)]
    if not (shared := sorted(tasks[0] & tasks[1])):
        raise DataError(
            f"{first} holds {', '.join(sorted(tasks[0])) or 'no task'}, {second} {', '.join(sorted(tasks[1])) or 'no task'}; "
            "compare two folders of `mmblocks eval --out` with a task in common."
        )
    comparisons = [_compare_task(task, first / task, second / task) for task in shared]
    if not any(one.documents for one in comparisons):
        unequal = sum(one.unequal for one in comparisons)
        asked = f" ({unequal} have the same key, but were asked another question)" if unequal else ""
        raise DataError(
            f"{first} and {second} have answered no document in common{asked}; compare two runs on the same data."
        )
    return comparisons


def _compare_task(task: str, first: Path, second: Path) -> TaskComparison:
    runs = [
        {prediction.key: prediction for prediction in read_predictions(folder).values() if not prediction.fault}
        for folder in (first, second)
    ]
    same_key = [(prediction, runs[1][key]) for key, prediction in runs[0].items() if key in runs[1]]
    pairs = [pair for pair in same_key if _is_same_document(*pair)]
    names = dict.fromkeys(metric for pair in pairs for metric in pair[0].scores or {})
    by_metric = {
        metric: [pair for pair in pairs if all(metric in (one.scores or {}) for one in pair)] for metric in names
    }
    metrics = [_compare_metric(metric, found) for metric, found in by_metric.items() if found]
    changes = [ScoreChange(one.metric, *pair) for one in metrics[:1] for pair in by_metric[one.metric]]
    return TaskComparison(
        task,
        documents=len(pairs),
        unpaired=len(runs[0].keys() ^ runs[1].keys()),
        unequal=len(same_key) - len(pairs),
        metrics=metrics,
        changes=[change for change in changes if change.difference],
    )


def _is_same_document(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions of a key are about the same document.

    A key that is the document's number says nothing of two files, so the record and the name of its image or video count too.
    """
    if one.key != f"#{one.number}":
        return one.prompt == other.prompt
    names = {Path(prediction.cluster).name for prediction in (one, other) if prediction.cluster}
    records = {(prediction.prompt, json.dumps(prediction.fields)) for prediction in (one, other)}
    return len(records) == 1 and len(names) < 2


def _compare_metric(metric: str, pairs: Sequence[Pair]) -> MetricComparison:
    before, after = ([_get_score(pair[side], metric) for pair in pairs] for side in (0, 1))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    known = [pair[0].cluster for pair in pairs]
    clusters = known if any(known) else None
    paired = compare_pairs(after, before, clusters)
    return MetricComparison(
        metric,
        fmean(differences),
        documents=len(pairs),
        clusters=len(group_by_cluster(clusters, len(pairs))),
        is_share=not is_lower_better(metric) and all(0 <= score <= 1 for score in before + after),
        paired=paired,
        bootstrap=None if paired is None else bootstrap_interval(differences, clusters),
    )


def _get_score(prediction: Prediction, metric: str) -> float:
    return (prediction.scores or {}).get(metric) or 0.0


# Forms --------------------------------------------------------------------------------------------------------------

COLUMNS = ("task", "metric", "second - first", "95 % interval", "bootstrap", "p", "documents", "clusters")


def list_rows(comparisons: Sequence[TaskComparison]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each metric of each task."""
    return [
        (
            task.task,
            f"{one.metric} (lower is better)" if is_lower_better(one.metric) else one.metric,
            one.format_value(one.difference, "+"),
            "" if one.paired is None else _format_interval(one, one.paired.lower, one.paired.upper),
            "" if one.bootstrap is None else _format_interval(one, *one.bootstrap),
            "" if one.paired is None else f"{one.paired.p_value:.3f}",
            str(one.documents),
            str(one.clusters),
        )
        for task in comparisons
        for one in task.metrics
    ]


def _format_interval(one: MetricComparison, lower: float, upper: float) -> str:
    return f"{one.format_value(lower, '+')} to {one.format_value(upper, '+')}"


def describe_documents(comparison: TaskComparison) -> list[str]:
    """Sentences: how many documents became better and worse, and which are left out."""
    better = sum(change.is_better for change in comparison.changes)
    said = [f"Documents that became better: {better}, worse: {len(comparison.changes) - better}."]
    if not comparison.metrics:
        said = ["The predictions have no score in common, so there is no difference (a judge's scores are not stored)."]
    if comparison.unpaired:
        said.append(f"Answered in one of the runs only, and left out: {comparison.unpaired}.")
    if comparison.unequal:
        said.append(
            f"Of the same key, but asked another question or about another image: {comparison.unequal}, left out; compare runs "
            "on the same data."
        )
    return said


def format_comparison(comparisons: Sequence[TaskComparison]) -> str:
    """Markdown: a row for each metric, then the documents that changed."""
    rows = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2)), *list_rows(comparisons)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for one in comparisons:
        lines += ["", f"{one.task}: {' '.join(describe_documents(one))}"]
        lines += [
            f"- {c.before.key}: {c.before.answer!r:.60} -> {c.after.answer!r:.60} ({c.before.where})"
            for c in one.changes[:MAX_LISTED]
        ]
        if len(one.changes) > MAX_LISTED:
            lines.append(f"- and {len(one.changes) - MAX_LISTED} more")
    return "\n".join(lines)


def to_json(comparisons: Sequence[TaskComparison]) -> list[dict[str, Any]]:
    """Plain values: all numbers, scores as the tasks give them, and every document that changed."""
    return [
        {
            "task": task.task,
            "documents": task.documents,
            "unpaired": task.unpaired,
            "unequal": task.unequal,
            "metrics": [_describe_metric(one) for one in task.metrics],
            "changes": [_describe_change(one) for one in task.changes],
        }
        for task in comparisons
    ]


def _describe_metric(one: MetricComparison) -> Mapping[str, Any]:
    paired = one.paired
    return {
        "metric": one.metric,
        "lower_is_better": is_lower_better(one.metric),
        "difference": one.difference,
        "standard_error": paired and paired.standard_error,
        "interval_95": paired and (paired.lower, paired.upper),
        "bootstrap_95": one.bootstrap,
        "p_value": paired and paired.p_value,
        "documents": one.documents,
        "clusters": one.clusters,
    }


def _describe_change(change: ScoreChange) -> Mapping[str, Any]:
    answers = {"first": change.before, "second": change.after}
    return {
        "key": change.before.key,
        "where": change.before.where,
        "metric": change.metric,
        "is_better": change.is_better,
        "prompt": change.before.prompt,
        "reference": change.reference,
        **{name: {"answer": one.answer, "score": (one.scores or {})[change.metric]} for name, one in answers.items()},
    }
