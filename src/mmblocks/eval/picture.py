"""The numbers of a run as bars, a panel for each task: all documents first, then categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.eval.report import TaskReport
from mmblocks.eval.tasks._averages import NO_ANSWER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BARS = 60
"""Bars of one task; further categories are in the table."""
BAR_INCHES = 0.22


def draw_reports(reports: Sequence[TaskReport], path: Path) -> None:
    """Write a PNG; lines at the ends of bars are 95 % intervals."""
    make_figure(reports).savefig(path, dpi=120)


def make_figure(reports: Sequence[TaskReport]) -> Figure:
    """The bars before they are written."""
    from matplotlib.figure import Figure

    names = [[name for name in report.values if name != NO_ANSWER][:MAX_BARS] for report in reports]
    heights = [BAR_INCHES * len(some) + 0.8 for some in names]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    panels = figure.subplots(len(reports), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, report, some in zip(panels, reports, names, strict=True):
        _draw_panel(panel, report, some)
    return figure


def _draw_panel(panel: Axes, report: TaskReport, names: Sequence[str]) -> None:
    values = [report.values[name] for name in names]
    errors = [report.errors.get(name, 0.0) for name in names]
    colours = ["tab:blue" if "/" not in name else "tab:gray" for name in names]
    panel.barh(range(len(names)), values, xerr=errors, color=colours, ecolor="black", capsize=2, height=0.7)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(f"{report.task}: {report.documents - len(report.faults)} documents", fontsize=10, loc="left")
    panel.grid(axis="x", alpha=0.3)
    for position, value in enumerate(values):
        panel.annotate(
            f"{value:.1f}", (0, position), textcoords="offset points", xytext=(3, -3), fontsize=7, color="white"
        )
