"""The trials of a sweep side by side: one row per combination, its seeds together, as Markdown, CSV and an image."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmblocks.eval.metrics.direction import is_lower_better
from mmblocks.sweep.scores import describe_score, format_score
from mmblocks.sweep.trials import SEED, TRIAL, Sweep, SweepTrial, read_json, shorten_keys

MARKDOWN, TABLE, IMAGE = "comparison.md", "comparison.csv", "comparison.png"
COSTS = {"visual_tokens": "tokens", "flops": "FLOPs"}
"""What a score is weighed against, and its short name."""
LEGEND = """\
Means over the seeds, in brackets the least and the greatest.
Visual tokens, and FLOPs of the prefill with 64 tokens of text: mean over {visuals}.
Peak memory: of CUDA where the trial ran there, else of its process, the interpreter included. Time: all its starts.
Front (Pareto): no other row scores as well for fewer visual tokens, or for fewer FLOPs.
"""


@dataclass(frozen=True, slots=True)
class SeedStatistics:
    """Values of the seeds of one combination: their mean, the least and the greatest."""

    mean: float
    least: float
    greatest: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> SeedStatistics | None:
        return cls(sum(values) / len(values), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One combination, its seeds apart. None where no trial of it has finished, or where nothing could be counted.

    values: by name, the score first. flops: of the prefill, mean over the reference visuals.
    peak_bytes and seconds: means over the finished trials. front: the costs for which no other row is as good and cheaper.
    """

    choices: Mapping[str, str]
    num_trials: int
    num_finished: int
    values: Mapping[str, SeedStatistics | None]
    visual_tokens: float | None = None
    parameters: int | None = None
    flops: float | None = None
    peak_bytes: float | None = None
    seconds: float | None = None
    front: tuple[str, ...] = ()

    @property
    def score(self) -> SeedStatistics | None:
        """The first of the values."""
        return next(iter(self.values.values()), None)

    @property
    def gain(self) -> float | None:
        """The mean score, negative where lower is better."""
        if self.score is None:
            return None
        return -self.score.mean if is_lower_better(next(iter(self.values))) else self.score.mean


@dataclass(frozen=True, slots=True)
class Comparison:
    """A sweep's rows, and what became of trials that have no score: a reason, or None while they wait."""

    sweep: Sweep
    rows: tuple[ComparisonRow, ...]
    missing: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def value_names(self) -> list[str]:
        """Names of the values, the score first."""
        names = [name for row in self.rows for name in row.values]
        return list(dict.fromkeys(names))


def compare_trials(folder: Path) -> Comparison:
    """Read a sweep's folder; trials that have not finished are left out of the means."""
    sweep = Sweep.load(folder)
    results = {trial.name: sweep.read_result(folder, trial) for trial in sweep.trials}
    done = {name: result for name, result in results.items() if result is not None and result["status"] == "done"}
    groups: dict[tuple[tuple[str, str], ...], list[SweepTrial]] = {}
    for trial in sweep.trials:
        groups.setdefault(tuple((k, v) for k, v in trial.choices.items() if k != SEED), []).append(trial)
    rows = []
    for choices, trials in groups.items():
        ended = [done[trial.name] for trial in trials if trial.name in done]
        scores = [result["values"] for result in ended]
        values = {name: SeedStatistics.from_values(_list_known_values(name, scores)) for one in scores for name in one}
        cost = read_json(folder / trials[0].name / TRIAL)["cost"]
        for name in ("peak_bytes", "seconds"):
            numbers = _list_known_values(name, ended)
            cost[name] = sum(numbers) / len(numbers) if numbers else None
        rows.append(ComparisonRow(dict(choices), len(trials), len(ended), values, **cost))
    missing = {name: result.get("reason") if result else None for name, result in results.items() if name not in done}
    return Comparison(sweep, _mark_pareto_fronts(rows), missing)


def _list_known_values(name: str, results: Sequence[Mapping[str, Any]]) -> list[float]:
    return [result[name] for result in results if result.get(name) is not None]


# The Pareto front ---------------------------------------------------------------------------------------------------


def _mark_pareto_fronts(rows: Sequence[ComparisonRow]) -> tuple[ComparisonRow, ...]:
    """The rows with the costs for which they are on the front."""
    fronts: list[tuple[str, ...]] = [() for _ in rows]
    for cost, short in COSTS.items():
        pairs = [(getattr(row, cost), row.gain) for row in rows]
        points = [None if price is None or gain is None else (price, gain) for price, gain in pairs]
        for number in find_pareto_front(points):
            fronts[number] += (short,)
    return tuple(replace(row, front=front) for row, front in zip(rows, fronts, strict=True))


def find_pareto_front(points: Sequence[tuple[float, float] | None]) -> set[int]:
    """Numbers of the points (cost, gain) that no other point beats: as cheap and as good, and better in one."""
    known = [(number, *point) for number, point in enumerate(points) if point is not None]
    return {
        number
        for number, cost, gain in known
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for _, c, g in known)
    }


# Tables -------------------------------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Put the table and the image into a sweep's folder; returns the files."""
    from mmblocks.sweep.comparison_picture import draw_comparison

    (folder / MARKDOWN).write_text(format_markdown(comparison), encoding="utf-8")
    (folder / TABLE).write_text(format_csv(comparison), encoding="utf-8")
    draw_comparison(comparison, folder / IMAGE)
    return [folder / name for name in (MARKDOWN, TABLE, IMAGE)]


def format_csv(comparison: Comparison) -> str:
    """One line per row, numbers in full: shares in percent, bytes, seconds."""
    keys = shorten_keys(_list_keys(comparison))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    spreads = [f"{name}{end}" for name in comparison.value_names for end in ("", "_min", "_max")]
    costs = ["visual_tokens", "parameters", "flops", "peak_bytes", "seconds"]
    table.writerow([*keys.values(), "trials", "finished", *spreads, *costs, "front"])
    for row in comparison.rows:
        given = [row.values.get(name) for name in comparison.value_names]
        numbers = [n for s in given for n in ((s.mean, s.least, s.greatest) if s else ("", "", ""))]
        paid = [getattr(row, name) for name in costs]
        own = [*(row.choices[k] for k in keys), row.num_trials, row.num_finished]
        table.writerow([*own, *numbers, *("" if n is None else n for n in paid), " ".join(row.front)])
    return text.getvalue()


def format_markdown(comparison: Comparison) -> str:
    """The table as people read it, what its columns mean, and the trials that have no score."""
    sweep, keys = comparison.sweep, shorten_keys(_list_keys(comparison))
    shared = f" with {' '.join(sweep.overrides)}" if sweep.overrides else ""
    head = ["#", *keys.values(), "trials", *comparison.value_names]
    costs = ["visual tokens", "parameters", "FLOPs", "peak memory", "time", "front"]
    numeric = len(head) - len(keys) + len(costs) - 2
    lines = [f"# {sweep.recipe}{shared}", "", _format_line([*head, *costs])]
    lines.append(_format_line(["---:", *("---" for _ in keys), *("---:" for _ in range(numeric)), "---"]))
    for number, row in enumerate(comparison.rows, 1):
        whole = row.num_finished == row.num_trials
        trials = str(row.num_trials) if whole else f"{row.num_finished} of {row.num_trials}"
        scores = [_format_statistics(name, row.values.get(name)) for name in comparison.value_names]
        paid = [
            "" if row.visual_tokens is None else f"{row.visual_tokens:g}",
            format_number(row.parameters),
            format_number(row.flops),
            "" if row.peak_bytes is None else f"{format_number(row.peak_bytes)}B",
            "" if row.seconds is None else f"{row.seconds:.0f} s",
        ]
        own = [str(number), *(row.choices[key] for key in keys)]
        lines.append(_format_line([*own, trials, *scores, *paid, ", ".join(row.front)]))
    lines += [
        "",
        f"Score: {describe_score(sweep.score)}",
        *LEGEND.format(visuals=", ".join(sweep.visuals)).splitlines(),
    ]
    if comparison.missing:
        ended = len(sweep.trials) - len(comparison.missing)
        lines += ["", f"{ended} of {len(sweep.trials)} trials have finished. The others:", ""]
        lines += [f"- {name}: {reason or 'not finished'}" for name, reason in comparison.missing.items()]
    return "\n".join(lines) + "\n"


def _list_keys(comparison: Comparison) -> list[str]:
    return list(comparison.rows[0].choices)


def _format_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def _format_statistics(name: str, statistics: SeedStatistics | None) -> str:
    if statistics is None:
        return ""
    if statistics.least == statistics.greatest:
        return format_score(name, statistics.mean)
    mean, least, greatest = (format_score(name, v) for v in (statistics.mean, statistics.least, statistics.greatest))
    return f"{mean} ({least} to {greatest})"


def format_number(number: float | None) -> str:
    """A number in thousands, millions, ...: 397745440 -> '397.7 M'."""
    if number is None:
        return ""
    steps = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next((f"{number / size:.1f} {prefix}" for prefix, size in steps if number >= size), f"{number:g} ")
