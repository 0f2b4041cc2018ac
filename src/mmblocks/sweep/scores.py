"""What the trials of a sweep are ranked by: never the training loss, but TinyWorld, the held-out loss, or any task."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.eval.metrics.direction import is_lower_better
from mmblocks.sweep.runs import read_metrics

TINY, LOSS = "tiny", "loss"
TINY_QUESTIONS = 200
HELD_OUT_LOSS, TRAINING_LOSS = "held-out loss", "training loss"
SCORES_FOLDER = "scores"
"""In the folder of a trial: the answers to every task that ranked it, and the last table."""
EXAMPLES = "--score 'data=val.json metric=contains', --score 'textvqa data=FILE limit=500', or evaluate.data=[{...}] in the recipe"


def read_score(text: str) -> dict[str, Any]:
    """The words of `--score` as plain values: "tiny limit=50", "loss", "pope data=FILE number=f1", "data=val.json metric=contains".

    Raises `ConfigError` for what is no score.
    """
    words = shlex.split(text)
    name = next((word for word in words if "=" not in word), "")
    if name == LOSS and len(words) == 1:
        return {"name": LOSS}
    if name in (TINY, LOSS):
        settings = dict(word.split("=", 1) for word in words if word != name and "=" in word)
        if name == LOSS or {*settings} - {"limit"} or not settings.get("limit", "1").isdigit():
            raise ConfigError(f"--score {text!r}: write 'loss', or 'tiny limit=200' for other numbers of questions.")
        return {"name": TINY, "limit": int(settings.get("limit", TINY_QUESTIONS))}
    from mmblocks.eval.task_settings import find_lost_files, find_task_faults, read_words  # imports torch

    settings = read_words(words)
    if faults := [*find_task_faults(settings), *find_lost_files(settings)]:
        raise ConfigError.from_faults(faults, f"--score {text!r}")
    return settings


def choose_score(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What composed runs are ranked by where nobody says: TinyWorld where all data is TinyWorld's, else what they evaluate."""
    evaluate = next(iter(runs.values()))["evaluate"] or {}
    if is_tinyworld(runs) or (evaluate.get("tiny") and not evaluate.get("data") and not evaluate.get("tasks")):
        return {"name": TINY, "limit": TINY_QUESTIONS}
    if evaluate.get("data") or not evaluate.get("tasks"):
        return {"name": LOSS}
    return dict(evaluate["tasks"][0])


def is_tinyworld(runs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all runs train on TinyWorld alone."""
    sources = (source for run in runs.values() for stage in run["stages"] for source in stage["data"])
    return all(source.get("name") == "tinyworld" for source in sources)


def require_held_out(score: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `ConfigError` where trials are ranked by a held-out loss that they do not all measure on the same conversations."""
    if score.get("name") != LOSS:
        return
    held_out = [((run["evaluate"] or {}).get("data"), (run["evaluate"] or {}).get("samples")) for run in runs.values()]
    if not held_out[0][0]:
        raise ConfigError(f"the trials hold nothing out, so nothing ranks them. Write {EXAMPLES}.")
    if any(one != held_out[0] for one in held_out):
        raise ConfigError(
            f"the trials hold out different conversations, whose losses cannot be compared. Write {EXAMPLES}."
        )


def measure_score(place: Path, score: Mapping[str, Any], device: str, *, skips: bool) -> dict[str, float]:
    """The numbers of a trained trial by name, the one that ranks first; shares in percent. place: its folder.

    Raises `DataError` for a document that cannot be read, unless `skips`.
    """
    from mmblocks.model.loading import load

    if score.get("name") == LOSS:
        losses = [row["eval/loss"] for row in read_metrics(place) if "eval/loss" in row]
        return {HELD_OUT_LOSS: float(losses[-1])}
    model = load(place / "model", device=device)
    if score.get("name") == TINY:
        from mmblocks.eval.tinyworld import ExactScore, evaluate_tinyworld, sum_scores

        found = {task: sum_scores(one) for task, one in evaluate_tinyworld(model, samples=score["limit"]).items()}
        found = {"exact answers": sum(found.values(), ExactScore(0, 0)), **found}
        return {name: 100 * one.exact_share for name, one in found.items()}
    from mmblocks.eval.report import write_reports
    from mmblocks.eval.runs import run_task
    from mmblocks.eval.task_settings import PlannedTask

    planned = PlannedTask.from_settings(score)
    digest = hashlib.sha256(json.dumps(score, sort_keys=True).encode()).hexdigest()[:8]
    folder = place / SCORES_FOLDER / f"{planned.label}-{digest}"
    numbers = run_task(model, planned.named, folder, planned.select(), {"trial": place.name}, title=planned.label)
    report = planned.make_report(folder, numbers, skips=skips)
    write_reports([report], place / SCORES_FOLDER)
    return planned.list_numbers(report)


def describe_score(score: Mapping[str, Any]) -> str:
    """What the score is, in a sentence."""
    if score.get("name") == TINY:
        return f"exact answers to {score['limit']} held-out questions of each of TinyWorld's tasks, in %."
    if score.get("name") == LOSS:
        return "loss per token on the held-out conversations of evaluate.data, after the last step; lower is better."
    words = [str(value) if key == "name" else f"{key}={value}" for key, value in score.items()]
    return f"what `mmblocks eval MODEL {' '.join(words)}` gives."


def format_score(name: str, value: float) -> str:
    """Losses with three digits behind the point, shares in percent with one."""
    return f"{value:.3f}" if is_lower_better(name) else f"{value:.1f}"
