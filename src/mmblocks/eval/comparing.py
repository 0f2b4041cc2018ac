"""Two runs on the same documents: by how much one is better, and which answers became right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from mmblocks.errors import DataError
from mmblocks.eval.predictions import Prediction, read_predictions
from mmblocks.eval.statistics import PairedDifference, compare_pairs


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """A document whose score of a metric differs between two runs."""

    metric: str
    before: Prediction
    after: Prediction


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """A task in two runs. documents: that both have answered. means: of each metric, second minus first, scores from 0 to 1.
    differences: the same with its interval; None of fewer than two documents or clusters. changes: what differs, of the first
    metric.
    """

    task: str
    documents: int
    unpaired: int
    means: Mapping[str, float]
    differences: Mapping[str, PairedDifference | None]
    changes: Sequence[ScoreChange]


def compare_runs(first: Path, second: Path) -> list[TaskComparison]:
    """Every task that both folders of `mmblocks eval --out` hold. Raises `DataError` where there is none."""
    tasks = [{path.parent.name for path in folder.glob("*/settings.json")} for folder in (first, second)]
    if not (shared := sorted(tasks[0] & tasks[1])):
        raise DataError(
            f"{first} holds {', '.join(sorted(tasks[0])) or 'no task'}, {second} {', '.join(sorted(tasks[1])) or 'no task'}; "
            "compare two folders of `mmblocks eval --out` with a task in common."
        )
    return [_compare_task(task, first / task, second / task) for task in shared]


def _compare_task(task: str, first: Path, second: Path) -> TaskComparison:
    runs = [
        {prediction.key: prediction for prediction in read_predictions(folder).values() if not prediction.fault}
        for folder in (first, second)
    ]
    keys = [key for key in runs[0] if key in runs[1]]
    pairs = [(runs[0][key], runs[1][key]) for key in keys]
    metrics = dict.fromkeys(
        metric for pair in pairs for metric in pair[0].scores or {} if metric in (pair[1].scores or {})
    )
    differences = {metric: _compare_metric(metric, pairs) for metric in metrics}
    means = {metric: fmean(_get_score(b, metric) - _get_score(a, metric) for a, b in pairs) for metric in metrics}
    changes = [
        ScoreChange(metric, *pair)
        for metric in [*metrics][:1]
        for pair in pairs
        if _get_score(pair[0], metric) != _get_score(pair[1], metric)
    ]
    return TaskComparison(task, len(pairs), len(runs[0].keys() ^ runs[1].keys()), means, differences, changes)


def _compare_metric(metric: str, pairs: Sequence[tuple[Prediction, Prediction]]) -> PairedDifference | None:
    before, after = ([_get_score(pair[side], metric) for pair in pairs] for side in (0, 1))
    clusters = [pair[0].cluster for pair in pairs]
    return compare_pairs(after, before, clusters if any(clusters) else None)


def _get_score(prediction: Prediction, metric: str) -> float:
    return (prediction.scores or {}).get(metric) or 0.0


def format_comparison(comparisons: Sequence[TaskComparison]) -> str:
    """Markdown: a row for each metric, then the documents that changed."""
    rows = ["| task | metric | second - first | 95 % interval | p | documents |", "|---|---|---:|---:|---:|---:|"]
    for one in comparisons:
        for metric, mean in one.means.items():
            found = one.differences[metric]
            interval = (
                " | "
                if found is None
                else f"{100 * found.lower:+.1f} to {100 * found.upper:+.1f} | {found.p_value:.3f}"
            )
            rows.append(f"| {one.task} | {metric} | {100 * mean:+.1f} | {interval} | {one.documents} |")
    for one in comparisons:
        better = sum(_get_score(c.after, c.metric) > _get_score(c.before, c.metric) for c in one.changes)
        rows += ["", f"{one.task}: {better} documents became better, {len(one.changes) - better} worse."]
        if one.unpaired:
            rows.append(f"{one.unpaired} documents are answered in one of the runs only and left out.")
        rows += [
            f"- {c.before.key}: {c.before.answer!r:.60} -> {c.after.answer!r:.60} ({c.before.where})"
            for c in one.changes[:20]
        ]
    return "\n".join(rows)
