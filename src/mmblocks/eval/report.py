"""What a run has found: numbers of tasks with their error bars, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmblocks.errors import DataError
from mmblocks.eval.metrics.direction import is_lower_better
from mmblocks.eval.predictions import Prediction
from mmblocks.eval.statistics import compute_clustered_error
from mmblocks.eval.tasks import DocumentTask
from mmblocks.storage import write_json, write_text

NORMAL_95 = 1.959964
"""Standard errors on each side of a mean within which 95 % of a normal distribution lie."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The numbers of one task.

    documents: how many were asked. faults: of those that could not be read, which count in no number. cut: answers that
    ended at the limit of their length. values: by name, as `Task.summarise` gives them. errors: half of the 95 % interval,
    clustered by the image or video that documents share, of the values that are means over all documents.
    """

    task: str
    documents: int
    faults: tuple[str, ...]
    cut: int
    answer_tokens: int
    seconds: float
    values: Mapping[str, float]
    errors: Mapping[str, float]
    notes: tuple[str, ...] = ()


def make_report(
    name: str, task: DocumentTask, predictions: Iterable[Prediction], notes: Sequence[str] = ()
) -> TaskReport:
    """The numbers of predictions. notes: what else is to be said of them. Raises `DataError` where no document at all was answered."""
    predictions = [*predictions]
    answered = [prediction for prediction in predictions if not prediction.fault]
    faults = tuple(prediction.fault for prediction in predictions if prediction.fault)
    if not answered:
        first = faults[0] if faults else "there are no documents."
        raise DataError(f"{name}: no document was answered: {first}")
    values = dict(task.summarise([prediction.to_scored() for prediction in answered]))
    return TaskReport(
        task=name,
        documents=len(predictions),
        faults=faults,
        cut=sum(prediction.finish_reason == "length" for prediction in answered),
        answer_tokens=sum(prediction.answer_tokens for prediction in answered),
        seconds=sum(prediction.seconds for prediction in answered),
        values=values,
        errors=_find_errors(values, answered),
        notes=tuple(notes),
    )


def _find_errors(values: Mapping[str, float], answered: Sequence[Prediction]) -> dict[str, float]:
    """Of the values that are 100 times the mean of a score over all answers."""
    errors = {}
    for metric in values:
        scores = [(prediction.scores or {}).get(metric, math.nan) or 0.0 for prediction in answered]
        if math.isclose(100 * math.fsum(scores) / len(scores), values[metric], rel_tol=1e-9, abs_tol=1e-9):
            error = compute_clustered_error(scores, [prediction.cluster for prediction in answered])
            if error is not None:
                errors[metric] = 100 * NORMAL_95 * error
    return errors


# Forms --------------------------------------------------------------------------------------------------------------


def format_markdown(reports: Sequence[TaskReport]) -> str:
    """One row for each number."""
    rows = ["| task | number | value | 95 % interval | documents |", "|---|---|---:|---:|---:|"]
    for report in reports:
        for name, value in report.values.items():
            error = report.errors.get(name)
            interval = "" if error is None else f"± {error:.1f}"
            rows.append(
                f"| {report.task} | {name} | {_format_value(name, value)} | {interval} | {report.documents - len(report.faults)} |"
            )
        if report.faults:
            rows.append(f"| {report.task} | documents that could not be read | {len(report.faults)} | | |")
        if report.cut:
            rows.append(f"| {report.task} | answers cut at the limit of their length | {report.cut} | | |")
    notes = [f"{report.task}: {note}" for report in reports for note in report.notes]
    return "\n".join([*rows, "", *notes] if notes else rows)


def _format_value(name: str, value: float) -> str:
    """Losses with three digits behind the point, shares in percent with one, counts with none."""
    if is_lower_better(name):
        return f"{value:.3f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def format_csv(reports: Sequence[TaskReport]) -> str:
    """As `format_markdown`, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "number", "value", "half_interval_95", "documents", "faults"])
    for report in reports:
        for name, value in report.values.items():
            counts = [report.documents - len(report.faults), len(report.faults)]
            writer.writerow([report.task, name, value, report.errors.get(name, ""), *counts])
    return text.getvalue()


def write_reports(reports: Sequence[TaskReport], folder: Path) -> None:
    """Put the table into a folder as results.md, .csv and .json, and as a picture."""
    from mmblocks.eval.picture import draw_reports

    write_text(folder / "results.md", format_markdown(reports) + "\n")
    write_text(folder / "results.csv", format_csv(reports))
    write_json(folder / "results.json", to_json(reports))
    draw_reports(reports, folder / "results.png")


def to_json(reports: Sequence[TaskReport]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(report) for report in reports]
