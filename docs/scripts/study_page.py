"""From what docs/scripts/study.py has measured to docs/explanation/study/study.md: numbers, what follows from them, tables and pictures."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study_cells import BASE, Cell, Effort
from study_questions import Claim, Question, Value

from mmblocks.sweep.trials import RESULT, read_json

PAGE, NUMBERS = "study.md", "study.json"
SURE = 2.0
"""A difference is told apart from chance when it is more than so many standard errors."""
HEAD = """\
# The laptop study

This study repeats published findings of the LLaVA family with a model of one million parameters on drawn shapes
([TinyWorld](../tinyworld.md)). Such a small study shows that the components work, and where a finding may come from. It is no
evidence about large models. Findings that are not reproduced are listed too.

One base run of the curriculum `tiny/onevision` gives a model after each stage. Every variant (arm) is a short training run
(`tiny/study`) that starts from one of these models and changes one thing. The score is the share of exact answers to held-out
questions, which are the same for all arms.

`python docs/scripts/study.py` runs the study and writes this page. Tables, plots and verdicts are computed from the numbers in
[study.json](study.json).
"""
JUDGED = """\
A difference counts if it is larger than two standard errors. The standard error includes the variance between seeds and the finite
number of questions. The variance between seeds is pooled over the arms of the question that have several seeds; if there are none,
over all arms that were measured on the same task. Otherwise the verdict is "not told apart". Points in the plots are seeds.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers say about a claim. difference and error are shares; None where something was not measured."""

    claim: Claim
    word: str
    difference: float | None = None
    error: float | None = None


def gathered(questions: Sequence[Question], effort: Effort, clock: Path, processes: int) -> dict[str, Any]:
    """All that was found, as docs/explanation/study/study.json holds it."""
    import torch

    base = effort.out / BASE / RESULT
    return {
        "budget": effort.budget,
        "samples": effort.samples,
        "processes": processes,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "wall_s": sum(end - begin for begin, end in read_json(clock)) if clock.is_file() else None,
        "base_s": read_json(base).get("seconds") if base.is_file() else None,
        "found": {q.name: {arm.name: _cells(q, arm, effort) for arm in q.arms} for q in questions},
    }


def _cells(question: Question, arm: Any, effort: Effort) -> list[dict[str, Any]]:
    found = [Cell(question, arm, seed, effort).measured() for seed in range(arm.seeds)]
    return [{k: cell[k] for k in ("scores", "tokens", "seconds")} for cell in found if cell is not None]


def write(numbers: Mapping[str, Any], questions: Sequence[Question], folder: Path) -> None:
    """study.json, a picture per question, study.md."""
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    for question in questions:
        draw(numbers, question, folder / f"study_{question.name}.svg")
    (folder / PAGE).write_text(page(numbers, questions), encoding="utf-8")


# What follows -------------------------------------------------------------------------------------------------------


def scores(numbers: Mapping[str, Any], question: str, value: Value) -> list[tuple[int, int]]:
    """(right, asked) of every seed of an arm."""
    arm, measure = value
    cells = numbers["found"].get(question, {}).get(arm, [])
    return [tuple(cell["scores"][measure]) for cell in cells if measure in cell["scores"]]


def share(found: Sequence[tuple[int, int]]) -> float:
    """Mean over the seeds."""
    return statistics.fmean(right / asked if asked else 0.0 for right, asked in found)


def judge(numbers: Mapping[str, Any], questions: Sequence[Question], question: Question, claim: Claim) -> Verdict:
    """Whether what was measured agrees with what was published."""
    ours = scores(numbers, question.name, claim.value)
    theirs = scores(numbers, question.name, claim.than) if isinstance(claim.than, tuple) else []
    if not ours or (isinstance(claim.than, tuple) and not theirs):
        return Verdict(claim, "not measured")
    difference = share(ours) - (share(theirs) if isinstance(claim.than, tuple) else claim.than)
    spread = seed_variance(numbers, questions, question, claim.value[1])
    error = math.sqrt(sum(spread / len(found) + _sampling(found) for found in (ours, theirs) if found))
    return Verdict(claim, _word(claim, difference, SURE * error), difference, error)


def _word(claim: Claim, difference: float, margin: float) -> str:
    if claim.expected == "alike":
        return "agrees" if abs(difference) <= margin else "disagrees"
    if claim.expected == "no less":
        return "disagrees" if difference < -margin else "agrees"
    return "agrees" if difference > margin else "disagrees" if difference < -margin else "not told apart"


def _sampling(found: Sequence[tuple[int, int]]) -> float:
    """Variance of a share from so many questions, which are the same for all seeds. Two are added, one of them right,
    so that all right does not count as certain.
    """
    asked = statistics.fmean(asked for _, asked in found) + 2
    guess = (statistics.fmean(right for right, _ in found) + 1) / asked
    return guess * (1 - guess) / asked


def seed_variance(numbers: Mapping[str, Any], questions: Sequence[Question], question: Question, measure: str) -> float:
    """Variance between seeds, pooled over arms with several: of this question and measure, else of the same task."""
    (task,) = {m.task for m in question.measures if m.name == measure}
    own = [scores(numbers, question.name, (arm.name, measure)) for arm in question.arms]
    alike = [
        scores(numbers, q.name, (arm.name, m.name))
        for q in questions
        for arm in q.arms
        for m in q.measures
        if m.task == task
    ]
    return _pooled(own) or _pooled(alike) or 0.0


def _pooled(groups: Sequence[Sequence[tuple[int, int]]]) -> float | None:
    several = [[right / asked for right, asked in group if asked] for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return sum(statistics.variance(g) * (len(g) - 1) for g in several if len(g) > 1) / freedom if freedom else None


# The page -----------------------------------------------------------------------------------------------------------


def page(numbers: Mapping[str, Any], questions: Sequence[Question]) -> str:
    """The page as Markdown, from the numbers alone."""
    verdicts = {q.name: [judge(numbers, questions, q, claim) for claim in q.claims] for q in questions}
    lines = [HEAD, JUDGED, *_overview(questions, verdicts), *_time(numbers, questions)]
    for question in questions:
        lines += _section(numbers, question, verdicts[question.name])
    return "\n".join(lines).rstrip() + "\n"


def _overview(questions: Sequence[Question], verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[str]:
    yield "## Findings\n"
    yield "| published | here | difference |\n|---|---|---:|"
    for question in questions:
        for verdict in verdicts[question.name]:
            yield f"| {verdict.claim.says} | [{verdict.word}](#{_anchor(question.asks)}) | {_difference(verdict)} |"
    yield ""


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")


def _difference(verdict: Verdict) -> str:
    if verdict.difference is None or verdict.error is None:
        return ""
    return f"{100 * verdict.difference:+.1f} ± {100 * SURE * verdict.error:.1f}"


def _section(numbers: Mapping[str, Any], question: Question, verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield f"## {question.asks}\n\n{question.how}\n"
    yield f"![{question.asks}](study_{question.name}.svg)\n"
    yield from _table(numbers, question)
    yield from map(_sentence, verdicts)
    yield ""


def _table(numbers: Mapping[str, Any], question: Question) -> Iterator[str]:
    tokens = ["tokens"] if question.visual else []
    head = ["arm", "", "seeds", *(m.name for m in question.measures), *tokens, "seconds"]
    yield f"| {' | '.join(head)} |\n|---|---|{'---:|' * (len(head) - 2)}"
    for arm in question.arms:
        cells = numbers["found"][question.name][arm.name]
        shown = [_shares(scores(numbers, question.name, (arm.name, m.name))) for m in question.measures]
        counted = [str(cells[0]["tokens"]) if cells else ""] if question.visual else []
        seconds = f"{statistics.fmean(cell['seconds'] for cell in cells):.0f}" if cells else ""
        yield f"| {' | '.join([arm.name, arm.what, str(len(cells)), *shown, *counted, seconds])} |"
    if question.visual:
        yield f"\nTokens are those of `{question.visual}`."
    yield ""


def _shares(found: Sequence[tuple[int, int]]) -> str:
    """Percent, and the least and the greatest of several seeds."""
    if not found:
        return ""
    each = [100 * right / asked if asked else 0.0 for right, asked in found]
    return f"{statistics.fmean(each):.1f}" + (f" ({min(each):.1f} to {max(each):.1f})" if len(each) > 1 else "")


def _sentence(verdict: Verdict) -> str:
    claim = verdict.claim
    said = f"* {claim.says[0].upper()}{claim.says[1:]} ({claim.source}): **{verdict.word}**."
    if verdict.difference is None or verdict.error is None:
        return said
    by = f"{100 * verdict.difference:+.1f} points, two standard errors are {100 * SURE * verdict.error:.1f}"
    return f"{said} {_compared(claim)}: {by}."


def _compared(claim: Claim) -> str:
    (arm, measure), than = claim.value, claim.than
    if not isinstance(than, tuple):
        return f"`{arm}` against {than:.0%} (asked: {measure})"
    if than[1] == measure:
        return f"`{arm}` against `{than[0]}` (asked: {measure})"
    return f"`{arm}` (asked: {measure}) against `{than[0]}` (asked: {than[1]})"


def _time(numbers: Mapping[str, Any], questions: Sequence[Question]) -> Iterator[str]:
    cells = [cell for q in questions for arm in q.arms for cell in numbers["found"][q.name][arm.name]]
    wall = "" if numbers["wall_s"] is None else f"**{numbers['wall_s'] / 60:.0f} minutes** in all, "
    base = "" if numbers["base_s"] is None else f"the base run {numbers['base_s'] / 60:.1f} minutes, "
    spent = sum(cell["seconds"] for cell in cells) / 60
    less = "" if numbers["budget"] == 1 else f" and {numbers['budget']:g} of its steps"
    yield "## Time\n"
    yield (
        f"{wall}{numbers['processes']} parallel processes on {numbers['cores']} cores (torch {numbers['torch']}): {base}"
        f"{len(cells)} trials {spent:.0f} minutes together, each with {numbers['samples']} questions per measure{less}.\n"
    )
    yield "```text\npython docs/scripts/study.py --out runs/study        run again to resume\n```\n"


# Pictures -----------------------------------------------------------------------------------------------------------


def draw(numbers: Mapping[str, Any], question: Question, path: Path) -> None:
    """One panel per measure, one row per arm: bars are means, points are seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = len(question.arms)
    width = max(7.0, 2.0 + 2.2 * len(question.measures))
    with matplotlib.rc_context({"svg.hashsalt": question.name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(width, 0.9 + 0.34 * rows), layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(question.measures), sharey=True, squeeze=False)[0]
        for panel, one in zip(panels, question.measures, strict=True):
            _draw_panel(panel, numbers, question, one.name)
        panels[0].set_yticks(range(rows), [arm.name for arm in question.arms])
        panels[0].invert_yaxis()
        figure.savefig(path, metadata={"Date": None})


def _draw_panel(panel: Any, numbers: Mapping[str, Any], question: Question, measure: str) -> None:
    for row, arm in enumerate(question.arms):
        found = scores(numbers, question.name, (arm.name, measure))
        if found:
            panel.barh(row, 100 * share(found), height=0.6, color="tab:blue", alpha=0.35)
            each = [100 * right / asked if asked else 0.0 for right, asked in found]
            panel.plot(each, [row] * len(each), "o", markersize=4, color="tab:blue", clip_on=False)
    panel.set_xlim(0, 104)
    panel.set_title(f"{measure} (%)", fontsize=9)
    panel.grid(axis="x", alpha=0.3)
