"""Sweeps before they start: words become trials, every trial is composed and checked, Hydra's launcher is handed the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import MissingConfigException, OverrideParseException

from mmblocks.conf.assemble import HYDRA_VERSION, compose_run, is_system, isolate_hydra
from mmblocks.conf.hydra_errors import HYDRA_ERRORS, explain_error, to_config_error
from mmblocks.conf.overrides import parse_overrides
from mmblocks.errors import ConfigError
from mmblocks.faults import HARMLESS, Fault
from mmblocks.settings import format_suggestion
from mmblocks.storage import write_json
from mmblocks.sweep.scores import choose_score, is_tinyworld, read_score, require_held_out
from mmblocks.sweep.trials import TRIAL, Axis, Sweep, SweepTrial, cross_axes, read_json, vary_one_at_a_time
from mmblocks.train.checks.run import check_run
from mmblocks.train.setting_changes import CHANGEABLE_ON_RESUME
from mmblocks.train.starting_model import adopt_offline

PROGRAM = "mmblocks.cli.hydra_task"
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")
VISUALS = ("image=1000x700", "video=1280x720@30s")
TINY_VISUALS = ("image=96x72", "video=48x48@2s@4fps")
"""What tokens are counted for unless visuals are named; the second, where all data is TinyWorld's: its own sizes."""
CHANGEABLE_IN_SWEEP = {key for key, effect in CHANGEABLE_ON_RESUME.items() if effect == "same result"}
"""Settings of a run that may differ when a sweep goes on: they change no result."""


@dataclass(frozen=True, slots=True)
class SweepArguments:
    """The words after a recipe, by what they do: vary, hold for all trials, choose the launcher, name visuals."""

    axes: tuple[Axis, ...]
    shared: tuple[str, ...]
    launcher: tuple[str, ...]
    visuals: tuple[str, ...]

    @classmethod
    def from_words(cls, recipe: str, words: Sequence[str]) -> SweepArguments:
        """Raises `ConfigError` for what cannot be read, or is not a sweep's to say."""
        visuals = tuple(w for w in words if w.startswith(("image=", "video=")))
        own = tuple(w for w in words if w.startswith("hydra"))
        if unknown := [word for word in own if not word.startswith(LAUNCHER)]:
            what = "of Hydra's settings a sweep takes hydra/launcher and hydra.launcher.* only."
            raise ConfigError(f"{unknown[0]!r}: {what}")
        try:
            overrides = parse_overrides([w for w in words if w not in visuals and w not in own])
        except OverrideParseException as error:
            raise to_config_error(recipe, error) from error
        for override in overrides:
            key, word = override.get_key_element(), override.input_line
            if override.key_or_group == "out":
                raise ConfigError(f"{word!r}: every trial has a folder of its own; name the sweep's with --out.")
            if override.is_sweep_override() and not (override.is_choice_sweep() or override.is_range_sweep()):
                raise ConfigError(f"{word!r} does not say which values; list them: {key}=a,b,c or {key}=range(0,3).")
        shared = tuple(str(o.input_line) for o in overrides if not o.is_sweep_override())
        axes = [Axis(o.get_key_element(), tuple(o.sweep_string_iterator())) for o in overrides if o.is_sweep_override()]
        return cls(tuple(axes), shared, own, visuals)


# Before anything starts ---------------------------------------------------------------------------------------------


def prepare_sweep(
    recipe: str, words: Sequence[str], *, one_at_a_time: bool = False, out: Path | None = None, score: str | None = None
) -> Path:
    """Compose and check every trial of a sweep and write its folder, without running any of it; returns the folder.

    one_at_a_time: vary one axis at a time (see `mmblocks.sweep.trials.vary_one_at_a_time`) instead of all together. out: by default `sweep` in
    the recipe's own. score: words that say what ranks the trials (see `mmblocks.sweep.scores`). Raises `ConfigError` that lists
    every fault by trial; nothing is written then.
    """
    arguments = SweepArguments.from_words(recipe, words)
    _require_launcher(arguments.launcher)
    trials = (vary_one_at_a_time if one_at_a_time else cross_axes)(arguments.axes)
    runs = _compose_trials(recipe, arguments.shared, trials)
    folder = Path(next(iter(runs.values()))["out"]) / "sweep" if out is None else out
    chosen = choose_score(runs) if score is None else read_score(score)
    require_held_out(chosen, runs)
    visuals = arguments.visuals or (TINY_VISUALS if is_tinyworld(runs) else VISUALS)
    _write_sweep(folder, Sweep(recipe, arguments.shared, tuple(trials), chosen, visuals), runs)
    return folder


def _compose_trials(recipe: str, shared: Sequence[str], trials: Sequence[SweepTrial]) -> dict[str, dict[str, Any]]:
    """Every trial's run by name. Raises one `ConfigError` for all that is wrong with all of them."""
    if is_system(recipe):
        compose_run(recipe)  # says why a system is no run
    runs: dict[str, dict[str, Any]] = {}
    wrong: list[Fault] = []
    for trial in trials:
        try:
            runs[trial.name] = compose_run(recipe, [*shared, *trial.overrides])
            faults = [fault for fault in check_run(runs[trial.name]) if fault.severity not in HARMLESS]
        except ConfigError as error:
            faults = error.faults or [Fault("", str(error))]
        wrong += [replace(fault, key=f"{trial.name}: {fault.key}".removesuffix(": ")) for fault in faults]
    if wrong:
        raise ConfigError.from_faults(wrong, "this sweep cannot run, and nothing was started")
    return runs


def _write_sweep(folder: Path, sweep: Sweep, runs: Mapping[str, dict[str, Any]]) -> None:
    """The sweep and the composed recipe of every trial; what another sweep has left there must agree."""
    from mmblocks.model.budget import parse_visual_shape  # counts FLOPs, which imports triton

    shapes = [parse_visual_shape(word) for word in sweep.visuals]

    @lru_cache
    def count_cost(model: str) -> dict[str, Any]:
        return _estimate_cost(json.loads(model), shapes)

    written = {
        name: {
            "recipe": {**run, "out": str(folder / name)},
            "cost": count_cost(json.dumps(adopt_offline(run)["model"])),
        }
        for name, run in runs.items()
    }
    disagreements = []
    for name, trial in written.items():
        path, recipe = folder / name, trial["recipe"]
        if not (path / TRIAL).is_file():
            disagreements += [f"{path} is there already, and is no trial of a sweep."] if path.exists() else []
            continue
        before = read_json(path / TRIAL)["recipe"]
        compared = sorted({*before, *recipe} - {*CHANGEABLE_IN_SWEEP})
        if keys := [key for key in compared if before.get(key) != recipe.get(key)]:
            disagreements.append(f"{path} holds a trial with other settings (they differ in {', '.join(keys)}).")
    if disagreements:
        raise ConfigError("\n".join([*disagreements, "Name another folder with --out, or delete what is there."]))
    for name, trial in written.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(folder / name / TRIAL, trial)
    sweep.save(folder)


def _estimate_cost(model: Mapping[str, Any], shapes: Sequence[Any]) -> dict[str, Any]:
    """Visual tokens and FLOPs, mean over the visuals, each in a conversation of its own; parameters."""
    from mmblocks.model.budget import estimate_budget

    budgets = [estimate_budget(model, [shape]) for shape in shapes]
    counted = [[n for part, n in b.flops.items() if part != "attention"] for b in budgets]
    totals = [None if None in parts else sum(n or 0 for n in parts) for parts in counted]
    return {
        "visual_tokens": sum(b.visual_tokens for b in budgets) / len(budgets),
        "parameters": sum(budgets[0].parameters.values()),
        "flops": None if None in totals else sum(n or 0 for n in totals) / len(totals),
    }


# The launcher -------------------------------------------------------------------------------------------------------


def _require_launcher(words: Sequence[str]) -> None:
    """Raise `ConfigError` for a launcher that is not installed or has no such setting."""
    try:
        with isolate_hydra(), hydra.initialize(None, version_base=HYDRA_VERSION):
            hydra.compose(overrides=list(words), return_hydra_config=True)
    except MissingConfigException as error:
        name = (error.missing_cfg_file or "").rpartition("/")[2]
        hint = format_suggestion(name, error.options or [])
        raise ConfigError(
            f"no launcher is called {name!r}.{hint} joblib's is in the package hydra-joblib-launcher."
        ) from error
    except HYDRA_ERRORS as error:
        raise ConfigError(f"{' '.join(words)}: {explain_error(error)}") from error


def run_sweep(folder: Path, words: Sequence[str] = ()) -> bool:
    """Run the trials of a prepared folder that have no score yet, each in a process of its own; whether all have one then.

    words: of these, the ones that choose the launcher are used, such as hydra/launcher=joblib. A failed trial is written
    down and stops no other.
    """
    sweep = Sweep.load(folder)
    if waiting := sweep.list_unfinished(folder):
        launcher = [word for word in words if word.startswith(LAUNCHER)]
        place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        # Hydra's own folder is below the sweep's; its logging would repeat ours.
        command = [
            sys.executable,
            "-m",
            PROGRAM,
            "--multirun",
            f"folder='{place}'",
            f"trial={','.join(map(str, waiting))}",
        ]
        command += [f"hydra.sweep.dir='{place}/launcher'", "hydra.sweep.subdir=.", "hydra.output_subdir=null"]
        command += ["hydra/job_logging=none", "hydra/hydra_logging=none", *launcher]
        subprocess.run(command, env={**os.environ, "HYDRA_FULL_ERROR": "1"})
    return not sweep.list_unfinished(folder)
