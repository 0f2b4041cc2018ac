"""The cells of a sweep side by side: one row per combination, its seeds together, as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmblocks.sweep.trials import CELL, SEED, Cell, Sweep, read_json, short_keys

MARKDOWN, TABLE, PICTURE = "comparison.md", "comparison.csv", "comparison.png"
COSTS = {"visual_tokens": "tokens", "flops": "FLOPs"}
"""What a score is weighed against, and its short name."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of the seeds of one combination: their mean, the least and the greatest."""

    mean: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(sum(values) / len(values), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Row:
    """One combination, its seeds apart. None where no cell of it has finished, or where nothing could be counted.

    values: score, loss and the shares of single tasks by name. flops: of the prefill, mean over the reference visuals.
    peak_bytes and seconds: means over the finished cells. front: the costs for which no other row is as good and cheaper.
    """

    choices: Mapping[str, str]
    cells: int
    finished: int
    values: Mapping[str, Spread | None]
    visual_tokens: float | None = None
    parameters: int | None = None
    flops: float | None = None
    peak_bytes: float | None = None
    seconds: float | None = None
    front: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A sweep's rows, and what became of cells that have no score: a reason, or None while they wait."""

    sweep: Sweep
    rows: tuple[Row, ...]
    missing: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def measured(self) -> list[str]:
        """Names of the values, the score first; the loss is the score where nothing else is."""
        names = [name for row in self.rows for name in row.values]
        return list(dict.fromkeys(names))


def compare(folder: Path) -> Comparison:
    """Read a sweep's folder; cells that have not finished are left out of the means."""
    sweep = Sweep.load(folder)
    results = {cell.name: sweep.result(folder, cell) for cell in sweep.cells}
    done = {name: found for name, found in results.items() if found is not None and found["status"] == "done"}
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(tuple((k, v) for k, v in cell.choices.items() if k != SEED), []).append(cell)
    rows = [_row(folder, dict(chosen), cells, done) for chosen, cells in groups.items()]
    missing = {name: found.get("reason") if found else None for name, found in results.items() if name not in done}
    return Comparison(sweep, tuple(_with_fronts(rows, higher_is_better=sweep.score != "loss")), missing)


def _row(folder: Path, choices: Mapping[str, str], cells: Sequence[Cell], done: Mapping[str, Any]) -> Row:
    ended = [done[cell.name] for cell in cells if cell.name in done]
    names = dict.fromkeys(name for result in ended for name in result["values"])
    cost = read_json(folder / cells[0].name / CELL)["cost"]
    values = {name: Spread.of(_known(name, [result["values"] for result in ended])) for name in names}
    paid = {name: _mean(_known(name, ended)) for name in ("peak_bytes", "seconds")}
    return Row(choices, len(cells), len(ended), values, **{**cost, **paid})


def _known(name: str, results: Sequence[Mapping[str, Any]]) -> list[float]:
    return [result[name] for result in results if result.get(name) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# The front ----------------------------------------------------------------------------------------------------------


def _with_fronts(rows: Sequence[Row], *, higher_is_better: bool) -> Iterator[Row]:
    fronts = {cost: front([_point(row, cost, higher_is_better) for row in rows]) for cost in COSTS}
    for number, row in enumerate(rows):
        yield replace(row, front=tuple(short for cost, short in COSTS.items() if number in fronts[cost]))


def _point(row: Row, cost: str, higher_is_better: bool) -> tuple[float, float] | None:
    price, score = getattr(row, cost), score_of(row)
    if price is None or score is None:
        return None
    return price, score.mean if higher_is_better else -score.mean


def score_of(row: Row) -> Spread | None:
    """The first of a row's values is its score."""
    return next(iter(row.values.values()), None)


def front(points: Sequence[tuple[float, float] | None]) -> set[int]:
    """Numbers of the points (cost, gain) that no other point beats: as cheap and as good, and better in one."""
    known = [(number, *point) for number, point in enumerate(points) if point is not None]
    return {
        number
        for number, cost, gain in known
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for _, c, g in known)
    }


# Tables -------------------------------------------------------------------------------------------------------------


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Put the table and the picture into a sweep's folder; returns the files."""
    from mmblocks.sweep.comparison_picture import draw

    (folder / MARKDOWN).write_text(as_markdown(comparison), encoding="utf-8")
    (folder / TABLE).write_text(as_csv(comparison), encoding="utf-8")
    draw(comparison, folder / PICTURE)
    return [folder / name for name in (MARKDOWN, TABLE, PICTURE)]


def as_csv(comparison: Comparison) -> str:
    """One line per row, numbers in full: shares from 0 to 1, bytes, seconds."""
    keys = short_keys(_keys(comparison))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    spreads = [f"{name}{end}" for name in comparison.measured for end in ("", "_min", "_max")]
    costs = ["visual_tokens", "parameters", "flops", "peak_bytes", "seconds"]
    table.writerow([*keys.values(), "cells", "finished", *spreads, *costs, "front"])
    for row in comparison.rows:
        given = [row.values.get(name) for name in comparison.measured]
        numbers = [n for s in given for n in ((s.mean, s.least, s.greatest) if s else ("", "", ""))]
        paid = [getattr(row, name) for name in costs]
        own = [*(row.choices[k] for k in keys), row.cells, row.finished]
        table.writerow([*own, *numbers, *("" if n is None else n for n in paid), " ".join(row.front)])
    return text.getvalue()


def as_markdown(comparison: Comparison) -> str:
    """The table as people read it, what its columns mean, and the cells that have no score."""
    sweep = comparison.sweep
    shared = f" with {' '.join(sweep.overrides)}" if sweep.overrides else ""
    lines = [f"# {sweep.recipe}{shared}", "", *_table(comparison), "", *_legend(sweep)]
    if comparison.missing:
        ended = len(sweep.cells) - len(comparison.missing)
        lines += ["", f"{ended} of {len(sweep.cells)} cells have finished. The others:", ""]
        lines += [f"- {name}: {reason or 'not finished'}" for name, reason in comparison.missing.items()]
    return "\n".join(lines) + "\n"


def _table(comparison: Comparison) -> Iterator[str]:
    keys = short_keys(_keys(comparison))
    head = ["#", *keys.values(), "cells", *comparison.measured]
    costs = ["visual tokens", "parameters", "FLOPs", "peak memory", "time", "front"]
    yield _line([*head, *costs])
    yield _line(
        ["---:", *("---" for _ in keys), *("---:" for _ in range(len(head) - len(keys) + len(costs) - 2)), "---"]
    )
    for number, row in enumerate(comparison.rows, 1):
        shown = [_spread(name, row.values.get(name)) for name in comparison.measured]
        cells = str(row.cells) if row.finished == row.cells else f"{row.finished} of {row.cells}"
        yield _line([str(number), *(row.choices[k] for k in keys), cells, *shown, *_costs(row), ", ".join(row.front)])


def _keys(comparison: Comparison) -> list[str]:
    return list(comparison.rows[0].choices)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def _spread(name: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    show: Callable[[float], str] = "{:.3f}".format if name == "loss" else lambda share: f"{100 * share:.1f}"
    if spread.least == spread.greatest:
        return show(spread.mean)
    return f"{show(spread.mean)} ({show(spread.least)} to {show(spread.greatest)})"


def _costs(row: Row) -> Iterator[str]:
    yield "" if row.visual_tokens is None else f"{row.visual_tokens:g}"
    yield scaled(row.parameters)
    yield scaled(row.flops)
    yield "" if row.peak_bytes is None else f"{scaled(row.peak_bytes)}B"
    yield "" if row.seconds is None else f"{row.seconds:.0f} s"


def scaled(number: float | None) -> str:
    """A number in thousands, millions, ...: 397745440 -> '397.7 M'."""
    if number is None:
        return ""
    steps = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next((f"{number / size:.1f} {prefix}" for prefix, size in steps if number >= size), f"{number:g} ")


def _legend(sweep: Sweep) -> Iterator[str]:
    if sweep.score == "tiny":
        yield f"Score: exact answers to {sweep.samples} held-out questions of each of TinyWorld's tasks, in %; loss: the last."
    else:
        yield "Score: the last training loss."
    yield "Means over the seeds, in brackets the least and the greatest."
    yield f"Visual tokens, and FLOPs of the prefill with 64 tokens of text: mean over {', '.join(sweep.visuals)}."
    yield "Peak memory: of CUDA where the cell ran there, else of its process, the interpreter included. Time: all its starts."
    yield "Front: no other row scores as well for fewer visual tokens, or for fewer FLOPs."
