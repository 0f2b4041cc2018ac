"""Differences between two runs, or two models."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmblocks.errors import ConfigError
from mmblocks.hub import HubReference
from mmblocks.model.budget import estimate_budget, parse_visual_shape
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.loading import locate_model, read_located_spec
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.sweep.runs import read_final_metrics

VISUALS = ("image=384x384", "image=1000x700", "video=640x360@10s")
"""Images and videos that visual tokens are counted for, each alone."""
MACHINE_METRICS = re.compile(r"(_s|_bytes|mfu)$|\bseconds/")
"""Metrics that tell of the machine and not of the run: times, rates, memory."""

Differences = dict[str, dict[str, tuple[Any, Any]]]
"""Section -> key -> the value of each; None where one of them has no such key."""


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a folder says: a composition, and of a run also its recipe (without the model) and its last metrics."""

    spec: ModelSpec
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]


def find_differences(one: Path | str, other: Path | str, visuals: Sequence[str] = VISUALS) -> Differences:
    """What differs between two folders of runs or of a sweep's trials, or two models (see `locate_model`); sections without a difference are left out.

    `visuals` are words as in `mmblocks.model.budget.parse_visual_shape`. Raises `ConfigError` for a folder that is neither.
    """
    pair = (read_run_description(one), read_run_description(other))
    sections: dict[str, Callable[[RunDescription], Mapping[str, Any]]] = {
        "components": lambda run: {
            key.removesuffix(".name"): value for key, value in flatten_keys(run.spec.to_dict()).items()
        },
        "parameters": lambda run: _describe_parameters(run.spec),
        "visual tokens": lambda run: {word: _count_visual_tokens(run.spec, word) for word in visuals},
        "data": lambda run: _list_stage_settings(run.recipe, data=True),
        "stages": lambda run: _list_stage_settings(run.recipe, data=False),
        "settings": lambda run: flatten_keys({k: v for k, v in run.recipe.items() if k not in ("stages", "out")}),
        "final metrics": lambda run: run.metrics,
    }
    differences: Differences = {}
    for name, describe in sections.items():
        first, second = map(describe, pair)
        keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        differences |= {name: {key: (first.get(key), second.get(key)) for key in keys}} if keys else {}
    return differences


def read_run_description(reference: Path | str) -> RunDescription:
    """Read run.json and metrics.jsonl of a run, or the settings of a model."""
    folder = Path(reference)
    run = folder / "run.json"
    if run.is_file():
        try:
            recipe = json.loads(run.read_text(encoding="utf-8"))
            spec = ModelSpec.from_dict(recipe.pop("model"))
        except (json.JSONDecodeError, KeyError, AttributeError) as cause:
            raise ConfigError(f"{run} is not a run's recipe ({type(cause).__name__}: {cause}).") from cause
        return RunDescription(
            spec,
            recipe,
            {k: v for k, v in flatten_keys(read_final_metrics(folder)).items() if not MACHINE_METRICS.search(k)},
        )
    is_repository = not folder.exists() and HubReference.parse(str(reference)) is not None
    if (folder / "config.json").is_file() or is_repository:
        return RunDescription(read_located_spec(locate_model(reference)), {}, {})
    what = "a file" if folder.is_file() else "not there" if not folder.exists() else "without run.json and config.json"
    raise ConfigError(f"{folder} is {what}; name the folder of a run (out=...), of a sweep's trial, or of a model.")


def flatten_keys(value: object, key: str = "") -> dict[str, Any]:
    """Nested mappings and lists of mappings as one mapping of dotted keys; other lists are values."""
    if isinstance(value, Mapping):
        return {
            k: v
            for name, inner in value.items()
            for k, v in flatten_keys(inner, f"{key}.{name}" if key else name).items()
        }
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        return {k: v for i, inner in enumerate(value) for k, v in flatten_keys(inner, f"{key}.{i}").items()}
    return {key: value}


# Sections -----------------------------------------------------------------------------------------------------------


def _describe_parameters(spec: ModelSpec) -> dict[str, Any]:
    """Sums by part, and the shapes of all parameters, layers that are alike in one entry: "4 of 352x128"."""
    seen = dry_build(spec)
    shapes: dict[str, Counter[str]] = {}
    for part in ("encoder", "projector", "backbone"):
        module = getattr(seen, part)
        for name, parameter in module.named_parameters() if isinstance(module, nn.Module) else ():
            alike = re.sub(r"(?<=\.)\d+(?=\.)", "*", f"{part}.{name}")
            shapes.setdefault(alike, Counter())["x".join(map(str, parameter.shape)) or "1"] += 1
    counts = {part: seen.count_parameters(part) for part in PARTS}
    return counts | {name: ", ".join(f"{n} of {s}" for s, n in times.items()) for name, times in shapes.items()}


def _count_visual_tokens(spec: ModelSpec, word: str) -> str:
    shape = parse_visual_shape(word)
    try:
        budget = estimate_budget(spec, [shape])
    except ConfigError as cause:
        return str(cause.faults[-1] if cause.faults else cause)
    return f"{budget.visual_tokens} tokens of {budget.views} views"


def _list_stage_settings(recipe: Mapping[str, Any], *, data: bool) -> dict[str, Any]:
    """Settings of the stages by name, or their data alone, and in which order they come."""
    stages = {stage["name"]: stage for stage in recipe.get("stages", [])}
    if data:
        return flatten_keys({name: {"data": stage["data"]} for name, stage in stages.items()})
    order = {"order": list(stages)} if stages else {}
    return order | flatten_keys(
        {n: {k: v for k, v in s.items() if k not in ("name", "data")} for n, s in stages.items()}
    )
