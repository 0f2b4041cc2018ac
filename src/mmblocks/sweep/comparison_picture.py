"""The image of a comparison: score with its spread over the seeds, against visual tokens and against FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.sweep.comparison import COSTS, Comparison
from mmblocks.sweep.trials import shorten_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_PT = 10
"""Height of a label."""
AXES = {"visual_tokens": "visual tokens", "flops": "FLOPs of the prefill"}


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Write a PNG; points bear the numbers of the table's rows, the line joins those on the Pareto front."""
    make_figure(comparison).savefig(path, dpi=120)


def make_figure(comparison: Comparison) -> Figure:
    """The plot before it is written."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 4.5 + 0.16 * len(comparison.rows)), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    labels = [_draw_panel(panel, comparison, cost) for panel, cost in zip(panels, COSTS, strict=True)]
    panels[0].set_ylabel(next(iter(comparison.value_names), "score"))
    keys = shorten_keys(list(comparison.rows[0].choices))
    texts = [", ".join(f"{keys[k]} {v}" for k, v in row.choices.items()) for row in comparison.rows]
    handles = [Line2D([], [], linestyle="", label=f"{n}  {text or 'all seeds'}") for n, text in enumerate(texts, 1)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, handlelength=0)
    figure.suptitle(f"{comparison.sweep.recipe}: mean over the seeds, bars from the least to the greatest", fontsize=10)
    figure.draw_without_rendering()  # from here on the places of points are known
    for panel, texts in zip(panels, labels, strict=True):
        _annotate(panel, texts)
    return figure


def _draw_panel(panel: Axes, comparison: Comparison, cost: str) -> dict[tuple[float, float], list[str]]:
    """Draw the points and the front; returns the numbers of the rows at each point."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    numbers: dict[tuple[float, float], list[str]] = {}
    best: list[tuple[float, float]] = []
    for number, row in enumerate(comparison.rows, 1):
        x, score = getattr(row, cost), row.score
        if x is None or score is None:
            continue
        y, is_best = score.mean, COSTS[cost] in row.front
        reach = [[y - score.least], [score.greatest - y]]
        panel.errorbar(x, y, yerr=reach, fmt="o", capsize=3, color="tab:red" if is_best else "tab:gray")
        numbers.setdefault((x, y), []).append(str(number))
        best += [(x, y)] if is_best else []
    if best:
        panel.plot(*zip(*sorted(best), strict=True), color="tab:red", linewidth=1)
    panel.set_xlabel(AXES[cost])
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=cost == "visual_tokens"))
    panel.xaxis.set_major_formatter(EngFormatter())
    panel.margins(x=0.08)
    panel.grid(alpha=0.3)
    return numbers


def _annotate(panel: Axes, numbers: Mapping[tuple[float, float], list[str]]) -> None:
    """Write the numbers beside their points, each above those that it would cover."""
    taken: list[tuple[float, float, float]] = []
    for point in sorted(numbers, key=lambda point: point[1]):
        text = ", ".join(numbers[point])
        left, bottom = (pixel * 72 / panel.figure.dpi for pixel in panel.transData.transform(point))
        width, shift = 5.0 * len(text) + 4, 3.0
        while any(x - width < left < x + w and abs(bottom + shift - y) < LABEL_PT for x, y, w in taken):
            shift += 1
        taken.append((left, bottom + shift, width))
        panel.annotate(text, point, textcoords="offset points", xytext=(6, shift), fontsize=8)
