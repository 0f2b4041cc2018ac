"""The pictures of docs/reference/benchmarks.md: rows in, SVG out, the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.suites.rows import Row

COLOURS = {"as shipped": "tab:blue", "best": "tab:orange", "naive": "tab:grey", "ours": "tab:green"}
PARTS = {"encoder": "tab:blue", "projector": "tab:red", "backbone": "tab:green", "head": "tab:purple"}
AXES = {"images": "images", "frames": "frames of a video", "resolution": "side of an image (px)"}
RATIO_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
GIB = 2**30
NAMES = {"0_5b": "0.5B", "7b": "7B"}


@contextmanager
def drawn(path: Path, rows: int, columns: int, size: tuple[float, float], **shared: Any) -> Iterator[Any]:
    """Panels of a figure that is then written."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)  # room for viewers' fonts, which may be wider
        yield figure.subplots(rows, columns, squeeze=False, **shared)
        figure.savefig(path, metadata={"Date": None})


def size_name(size: str) -> str:
    """0.5B rather than 0_5b."""
    return NAMES.get(size, size)


# Ratios -------------------------------------------------------------------------------------------------------------


def ratios(rows: Sequence[Row], path: Path) -> None:
    """One panel per size, one line per case, a bar for each setting of the peer; whiskers are quartiles of ours."""
    sizes = list(dict.fromkeys(row.size for row in rows))
    cases = list(dict.fromkeys(case_of(row) for row in rows))
    with drawn(path, 1, len(sizes), (2.6 + 3.1 * len(sizes), 1.0 + 0.42 * len(cases)), sharey=True) as panels:
        for panel, size in zip(panels[0], sizes, strict=True):
            _ratio_panel(panel, [row for row in rows if row.size == size], cases)
            panel.set_title(f"{size_name(size)}: times faster", fontsize=9)
        panels[0][0].set_yticks(range(len(cases)), cases)
        panels[0][0].invert_yaxis()
        _legend(panels[0][-1], [s for s in COLOURS if any(row.peer_setting == s for row in rows)])


def case_of(row: Row) -> str:
    """A line of the picture; quantities that tell how many tokens there were are cut."""
    words = row.quantity.partition(",")[0]
    return f"{row.suite.replace('_', ' ')}: {row.scenario}" + (f", {words}" if words.startswith("forward") else "")


def _ratio_panel(panel: Any, rows: Sequence[Row], cases: Sequence[str]) -> None:
    for place, case in enumerate(cases):
        own = [row for row in rows if case_of(row) == case and row.ratio is not None]
        for number, row in enumerate(own):
            y = place + (number - (len(own) - 1) / 2) * 0.28
            whisker = row.ratio * (row.spread or 0.0)
            panel.barh(y, row.ratio - 1, height=0.26, left=1, color=COLOURS[row.peer_setting], alpha=0.5)
            panel.errorbar(row.ratio, y, xerr=whisker, color="black", linewidth=0.8, capsize=1.5)
            _write(panel, max(1.0, row.ratio + whisker), y, f"{row.ratio:.3g}x")
    panel.set_xscale("log")
    panel.set_xticks([tick for tick in RATIO_TICKS if tick < 2 * max(row.ratio or 1 for row in rows)])
    panel.xaxis.set_major_formatter("{x:g}x")
    panel.minorticks_off()
    low, high = panel.get_xlim()
    panel.set_xlim(low, high * 2.5)  # room for the numbers
    panel.axvline(1, color="black", linewidth=0.8)
    panel.grid(axis="x", alpha=0.3)


def _write(panel: Any, x: float, y: float, text: str) -> None:
    """A number to the right of a place, clear of whiskers and bars."""
    panel.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)


def _legend(panel: Any, settings: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[s], alpha=0.5, label=s) for s in settings]
    panel.figure.legend(handles=handles, fontsize=7, loc="outside lower center", ncols=len(handles))


# Memory -------------------------------------------------------------------------------------------------------------


def memory(rows: Sequence[Row], path: Path) -> None:
    """One panel per quantity and size: GiB of ours and of the peer's settings, by scenario."""
    sizes = list(dict.fromkeys(row.size for row in rows))
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    height = 0.6 + 1.9 * len(sizes)
    with drawn(path, len(sizes), len(quantities), (1.5 + 2.9 * len(quantities), height), sharey="row") as panels:
        for line, size in zip(panels, sizes, strict=True):
            for panel, quantity in zip(line, quantities, strict=True):
                found = [row for row in rows if (row.size, row.quantity) == (size, quantity)]
                _memory_panel(panel, found)
                panel.set_title(f"{size_name(size)}: {quantity} (GiB)", fontsize=8)
        _legend(panels[0][-1], [s for s in COLOURS if s == "ours" or any(row.peer_setting == s for row in rows)])


def _memory_panel(panel: Any, rows: Sequence[Row]) -> None:
    scenarios = list(dict.fromkeys(row.scenario.partition(",")[0] for row in rows))
    for place, scenario in enumerate(scenarios):
        own = [row for row in rows if row.scenario.partition(",")[0] == scenario]
        bars = [("ours", own[0].ours), *((row.peer_setting, row.peer) for row in own)]
        for number, (name, value) in enumerate(bars):
            y = place + (number - (len(bars) - 1) / 2) * 0.26
            panel.barh(y, value / GIB, height=0.24, color=COLOURS[name], alpha=0.5)
            _write(panel, value / GIB, y, f"{value / GIB:.3g}")
    panel.set_yticks(range(len(scenarios)), scenarios)
    panel.set_ylim(len(scenarios) - 0.5, -0.5)
    panel.margins(x=0.15)
    panel.grid(axis="x", alpha=0.3)


# Growth -------------------------------------------------------------------------------------------------------------


def growth(rows: Sequence[Row], path: Path) -> None:
    """Of one size: above FLOPs of a prefill by part, below bytes, along images, frames and resolution."""
    axes = [axis for axis in AXES if any(row.scenario.startswith(f"{axis}=") for row in rows)]
    with drawn(path, 2, len(axes), (1.0 + 3.1 * len(axes), 5.4), sharex="col") as panels:
        for column, axis in enumerate(axes):
            own = [row for row in rows if row.scenario.startswith(f"{axis}=")]
            _flops_panel(panels[0][column], own)
            _bytes_panel(panels[1][column], own)
            panels[0][column].set_title(AXES[axis], fontsize=9)
        panels[0][0].set_ylabel("prefill (TFLOP)")
        panels[1][0].set_ylabel("GiB")
        for panel in panels[:, 0]:
            panel.legend(fontsize=7)


def points(rows: Sequence[Row], quantity: str, side: str = "ours") -> tuple[list[int], list[float]]:
    """Places on the axis and values of a quantity there."""
    found = {int(row.scenario.partition("=")[2]): getattr(row, side) for row in rows if row.quantity == quantity}
    known = {x: y for x, y in sorted(found.items()) if y is not None}
    return list(known), list(known.values())


def _flops_panel(panel: Any, rows: Sequence[Row]) -> None:
    parts = {part: points(rows, f"prefill of the {part}") for part in PARTS}
    x = parts["encoder"][0]
    shares = [[y / 1e12 for y in values] for _, values in parts.values()]
    panel.stackplot(x, *shares, labels=list(parts), colors=list(PARTS.values()), alpha=0.5)
    x, naive = points(rows, "prefill", "peer")
    panel.plot(x, [y / 1e12 for y in naive], "--", color="black", linewidth=1, label="naive")
    _along(panel)


def _bytes_panel(panel: Any, rows: Sequence[Row]) -> None:
    lines: Mapping[str, tuple[str, str, str]] = {
        "kept for backward, naive": ("kept for backward", "peer", "tab:grey"),
        "kept for backward": ("kept for backward", "ours", "tab:green"),
        "key-value cache": ("key-value cache", "ours", "tab:purple"),
    }
    for label, (quantity, side, colour) in lines.items():
        x, values = points(rows, quantity, side)
        panel.plot(x, [y / GIB for y in values], "o-", markersize=3, color=colour, label=label)
    panel.set_yscale("log")
    _along(panel)


def _along(panel: Any) -> None:
    panel.grid(alpha=0.3)
    panel.margins(x=0.02)


# Files of records ---------------------------------------------------------------------------------------------------


def opening(rows: Sequence[Row], path: Path) -> None:
    """Seconds until a file is open, by its number of records; a line per form of file, the first time and again."""
    with drawn(path, 1, 1, (5.0, 3.2)) as panels:
        panel = panels[0][0]
        for kind in dict.fromkeys(row.scenario.partition(", ")[2].rpartition(", ")[2] for row in rows):
            for quantity, style in (("opened first", "o-"), ("opened again", "o--")):
                own = [row for row in rows if row.quantity == quantity and row.scenario.endswith(kind)]
                numbers = [int(row.scenario.partition(" ")[0].replace(",", "")) for row in own]
                panel.plot(numbers, [row.ours for row in own], style, markersize=3, label=f"{kind}, {quantity}")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("records")
        panel.set_ylabel("seconds")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)


# Serving ------------------------------------------------------------------------------------------------------------


def serving(rows: Sequence[Row], path: Path) -> None:
    """Tokens a second by the number of requests at a time; a line per size of model."""
    with drawn(path, 1, 1, (5.0, 3.0)) as panels:
        panel = panels[0][0]
        for size in dict.fromkeys(row.size for row in rows):
            own = [row for row in rows if row.size == size]
            numbers = [int(row.quantity.partition(" ")[0]) for row in own]
            panel.plot(numbers, [row.ours for row in own], "o-", markersize=3, label=size)
        panel.set_xscale("log", base=2)
        panel.set_xticks(numbers, map(str, numbers))
        panel.set_ylim(bottom=0)
        panel.set_xlabel("requests at a time")
        panel.set_ylabel("tokens / s")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, title="size of model")


# Packing ------------------------------------------------------------------------------------------------------------


def waste(table: Sequence[Mapping[str, str]], path: Path) -> None:
    """Tokens computed for each real one, by way of batching and stage; the same for all models."""
    found = [line for line in table if line["figure"] == "waste" and line["model"] == table[0]["model"]]
    found = [line for line in found if line["ranks"] == found[0]["ranks"]]
    ways = list(dict.fromkeys(line["batching"] for line in found))
    stages = list(dict.fromkeys(line["stage"] for line in found))
    values = {(line["stage"], line["batching"]): float(line["value"]) for line in found}
    with drawn(path, 1, 1, (7.0, 1.0 + 0.45 * len(ways))) as panels:
        panel = panels[0][0]
        for number, stage in enumerate(stages):
            y = [place + (number - (len(stages) - 1) / 2) * 0.34 for place in range(len(ways))]
            panel.barh(y, [values[stage, way] for way in ways], height=0.32, alpha=0.5, label=stage.replace("_", " "))
        panel.set_yticks(range(len(ways)), ways)
        panel.invert_yaxis()
        panel.set_title("tokens computed for each real token", fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.legend(fontsize=7)


def efficiency(table: Sequence[Mapping[str, str]], path: Path) -> None:
    """The share of time in which ranks work, by their number; a panel per model and stage, a line per way of batching."""
    found = [line for line in table if line["figure"] == "efficiency"]
    kinds = list(dict.fromkeys((line["model"], line["stage"]) for line in found))
    with drawn(path, 2, (len(kinds) + 1) // 2, (9.0, 6.6), sharex=True, sharey=True) as panels:
        flat = panels.flatten()
        for panel, (model, stage) in zip(flat, kinds, strict=False):
            _efficiency_panel(panel, [line for line in found if (line["model"], line["stage"]) == (model, stage)])
            panel.set_title(f"{model.rpartition('/')[2]}, {stage.replace('_', ' ')}", fontsize=9)
        handles, names = flat[0].get_legend_handles_labels()
        flat[0].figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=2)
        for panel in panels[-1]:
            panel.set_xlabel("ranks")


def _efficiency_panel(panel: Any, lines: Sequence[Mapping[str, str]]) -> None:
    for way in dict.fromkeys(line["batching"] for line in lines):
        own = sorted((int(line["ranks"]), float(line["value"])) for line in lines if line["batching"] == way)
        panel.plot(*zip(*own, strict=True), "o-", markersize=3, label=way)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted({int(line["ranks"]) for line in lines}), minor=False)
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_ylim(0, 1.03)
    panel.grid(alpha=0.3)
