"""The picture of a comparison: score with its spread over the seeds, against visual tokens and against FLOPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmblocks.sweep.comparison import COSTS, Comparison, score_of
from mmblocks.sweep.trials import short_keys

AXES = {"visual_tokens": "visual tokens", "flops": "FLOPs of the prefill"}


def draw(comparison: Comparison, path: Path) -> None:
    """Write a PNG; points bear the numbers of the table's rows, the line joins those on the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5 + 0.16 * len(comparison.rows)), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for panel, (cost, short) in zip(panels, COSTS.items(), strict=True):
        _draw_panel(panel, comparison, cost, short)
    panels[0].set_ylabel("last training loss" if comparison.sweep.score == "loss" else "exact answers (%)")
    figure.legend(handles=_handles(comparison), loc="outside lower center", ncols=2, fontsize=8, handlelength=0)
    figure.suptitle(f"{comparison.sweep.recipe}: mean over the seeds, bars from the least to the greatest", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_panel(panel: Any, comparison: Comparison, cost: str, short: str) -> None:
    from matplotlib.ticker import EngFormatter

    unit = 1.0 if comparison.sweep.score == "loss" else 100.0
    numbers: dict[tuple[float, float], list[str]] = {}
    best: list[tuple[float, float]] = []
    for number, row in enumerate(comparison.rows, 1):
        x, score = getattr(row, cost), score_of(row)
        if x is None or score is None:
            continue
        y, is_best = unit * score.mean, short in row.front
        reach = [[y - unit * score.least], [unit * score.greatest - y]]
        panel.errorbar(x, y, yerr=reach, fmt="o", capsize=3, color="tab:red" if is_best else "tab:gray")
        numbers.setdefault((x, y), []).append(str(number))
        best += [(x, y)] if is_best else []
    for point, here in numbers.items():
        panel.annotate(", ".join(here), point, textcoords="offset points", xytext=(6, 3), fontsize=8)
    if best:
        panel.plot(*zip(*sorted(best), strict=True), color="tab:red", linewidth=1)
    panel.set_xlabel(AXES[cost])
    panel.xaxis.set_major_formatter(EngFormatter())
    panel.grid(alpha=0.3)


def _handles(comparison: Comparison) -> list[Any]:
    from matplotlib.lines import Line2D

    keys = short_keys(list(comparison.rows[0].choices))
    texts = [", ".join(f"{keys[k]} {v}" for k, v in row.choices.items()) for row in comparison.rows]
    return [Line2D([], [], linestyle="", label=f"{n}  {text or 'all seeds'}") for n, text in enumerate(texts, 1)]
