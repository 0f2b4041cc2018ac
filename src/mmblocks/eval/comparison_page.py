"""A comparison of two runs as a page: the differences, and the documents that changed, with what was shown to the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from mmblocks.conversation import Visual
from mmblocks.data.inspect.html_page import embed_image, make_html_page
from mmblocks.data.media.visuals import load_frames, read_visual_shape
from mmblocks.errors import MMBlocksError
from mmblocks.eval.comparing import (
    COLUMNS,
    MetricComparison,
    ScoreChange,
    TaskComparison,
    describe_documents,
    list_rows,
)
from mmblocks.eval.documents.reading import ANY_SIZE
from mmblocks.eval.predictions import Prediction
from mmblocks.eval.stored_runs import StoredRun

MAX_SHOWN = 25
"""Documents of a task that are shown as better, and as worse; those of the largest differences."""
MAX_VISUALS = 8
"""Images and videos of a document that are shown."""
IMAGE_PX, FRAME_PX, FRAMES = 320, 160, 4
"""Longest side of a shown image and of a frame of a video, and how many frames are shown."""
MAX_OPEN = 1500
"""Characters of a text that are shown before it is unfolded."""
RUNS = ("first", "second")


def make_comparison_page(comparisons: Sequence[TaskComparison], first: Path, second: Path) -> str:
    """The page. first, second: the folders that `compare_runs` was given; of the first the documents are read again.

    Where its data are gone or have changed, documents are shown without images, and the page says why.
    """
    body = [
        "<h1>Two runs compared</h1>",
        *(f"<p>{name}: {escape(str(folder))}</p>" for name, folder in zip(RUNS, (first, second), strict=True)),
        *_format_table(COLUMNS, list_rows(comparisons)),
        "<p>Shares are in percent. Intervals are those of 95 %: by the central limit theorem, and by resampling (bootstrap); "
        "documents that share an image or a video are one cluster.</p>",
    ]
    for comparison in comparisons:
        body += _format_task(comparison, first / comparison.task)
    return make_html_page(f"{first} and {second} compared", body)


def _format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first two columns are texts, the others numbers."""
    yield f"<table>\n<tr>{''.join(f'<th>{escape(name)}</th>' for name in columns)}</tr>"
    for row in rows:
        texts = "".join(f"<td>{_format_text(text)}</td>" for text in row[:2])
        numbers = "".join(f'<td class="number">{escape(text)}</td>' for text in row[2:])
        yield f"<tr>{texts}{numbers}</tr>"
    yield "</table>"


def _format_task(comparison: TaskComparison, folder: Path) -> Iterator[str]:
    yield f"<h2>{escape(comparison.task)}</h2>"
    yield f"<p>{escape(' '.join(describe_documents(comparison)))}</p>"
    if not comparison.changes:
        return
    run = _open_run(folder)
    for name in ("better", "worse"):
        changes = [change for change in comparison.changes if change.is_better == (name == "better")]
        if not changes:
            continue
        yield f"<h3>{len(changes)} {name}</h3>"
        if len(changes) > MAX_SHOWN:
            yield (
                f"<p>The {MAX_SHOWN} of the largest differences are shown, {len(changes) - MAX_SHOWN} are left out; "
                "comparison.json has all.</p>"
            )
        for change in sorted(changes, key=lambda change: -abs(change.difference))[:MAX_SHOWN]:
            yield f'<article class="{name}">'
            yield from _format_change(change, comparison.metrics[0], run)
            yield "</article>"


def _format_change(change: ScoreChange, metric: MetricComparison, run: StoredRun | str) -> Iterator[str]:
    before = change.before
    yield f"<h4>{escape(before.key)}</h4>\n<p>{escape(before.where)}</p>"
    yield from _format_visuals(before, run)
    rows = [("prompt", before.prompt, "")]
    if change.reference is not None:
        listed = change.reference if isinstance(change.reference, list) else [change.reference]
        rows.append(("reference", "\n".join(map(str, listed)), ""))
    rows += [
        (name, one.answer, _format_score(one, metric)) for name, one in zip(RUNS, (before, change.after), strict=True)
    ]
    yield from _format_table(("", "", metric.metric), rows)


def _format_text(text: str) -> str:
    if len(text) <= MAX_OPEN:
        return escape(text)
    summary = f"{escape(text[:MAX_OPEN])} ... ({len(text)} characters)"
    return f"<details><summary>{summary}</summary>{escape(text)}</details>"


def _format_score(prediction: Prediction, metric: MetricComparison) -> str:
    score = (prediction.scores or {})[metric.metric]
    return "no answer was read" if score is None else metric.format_value(score)


# What was shown -------------------------------------------------------------------------------------------------------


def _open_run(folder: Path) -> StoredRun | str:
    """The documents of a run, or why they cannot be read."""
    try:
        return StoredRun.from_folder(folder)
    except Exception as cause:  # a task of another package may fail in any way, and the answers are worth a page
        return _explain(cause)


def _format_visuals(prediction: Prediction, run: StoredRun | str) -> Sequence[str]:
    """The images and videos that were shown, or why they are not here."""
    if isinstance(run, str):
        return [f'<p class="fault">Images and videos are not shown: {escape(run)}</p>']
    try:
        visuals = run.ask_again(prediction).visuals
        shown = [image for visual in visuals[:MAX_VISUALS] for image in _draw_visual(visual)]
    except Exception as cause:  # as in `_open_run`
        return _format_visuals(prediction, _explain(cause))
    lines = [f'<div class="visuals">{"".join(shown)}</div>'] if shown else []
    if len(visuals) > MAX_VISUALS:
        lines.append(f"<p>{len(visuals) - MAX_VISUALS} more images or videos are left out.</p>")
    return lines


def _explain(cause: Exception) -> str:
    return str(cause) if isinstance(cause, MMBlocksError) else f"{type(cause).__name__}: {cause}"


def _draw_visual(visual: Visual) -> Iterator[str]:
    """An image, or frames of a video at even distances, as HTML."""
    shape = read_visual_shape(visual, images=ANY_SIZE)
    count = min(FRAMES, shape.num_frames)
    numbers = [i * (shape.num_frames - 1) // max(count - 1, 1) for i in range(count)]
    for number, frame in load_frames(visual, numbers, ANY_SIZE).items():
        is_video = visual.kind == "video"
        description = f"frame {number}, {shape.compute_frame_time_s(number):.2f} s" if is_video else "image"
        frame.thumbnail((FRAME_PX, FRAME_PX) if is_video else (IMAGE_PX, IMAGE_PX))
        yield embed_image(frame, description, "JPEG")
