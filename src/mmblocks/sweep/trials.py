"""The trials of a sweep: which values meet, what each combination is called, and the folder that holds them all."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.storage import write_json

SEED = "seed"
"""The setting over whose values scores are averaged."""
SWEEP, TRIAL, RESULT = "sweep.json", "trial.json", "result.json"
LONGEST_NAME = 120


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting or component group and the values it takes, as they are written in overrides."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """One combination: a value for every axis. `name` is its folder's, of letters, digits, '-', '_' and '.'."""

    name: str
    choices: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.choices.items()]


def cross_axes(axes: Sequence[Axis]) -> list[SweepTrial]:
    """Every value of every axis with every other, the last axis turning fastest. Raises `ConfigError` for no axis."""
    _require_distinct(axes)
    combinations = itertools.product(*(axis.values for axis in axes))
    return _name_trials(axes, [dict(zip(_list_keys(axes), values, strict=True)) for values in combinations])


def vary_one_at_a_time(axes: Sequence[Axis]) -> list[SweepTrial]:
    """One-at-a-time study: the first values, and each axis alone at each of its others. Every arm has every seed."""
    _require_distinct(axes)
    centre = {axis.key: axis.values[0] for axis in axes}
    arms = [centre, *({**centre, a.key: value} for a in axes if a.key != SEED for value in a.values[1:])]
    seeds = next((axis.values for axis in axes if axis.key == SEED), ())
    return _name_trials(axes, [{**arm, SEED: seed} for arm in arms for seed in seeds] if seeds else arms)


def _list_keys(axes: Sequence[Axis]) -> list[str]:
    return [axis.key for axis in axes]


def _require_distinct(axes: Sequence[Axis]) -> None:
    if not axes:
        raise ConfigError("nothing varies: give several values, such as seed=0,1,2, or use `mmblocks train`.")
    for key, times in Counter(_list_keys(axes)).items():
        if times > 1:
            raise ConfigError(f"{key} is varied {times} times; write all its values in one word, such as {key}=a,b,c.")
    for axis in axes:
        if twice := [value for value, times in Counter(axis.values).items() if times > 1]:
            raise ConfigError(f"{axis.key} takes the value {twice[0]} more than once; write it once.")


# Names --------------------------------------------------------------------------------------------------------------


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Keys by their last words, as many as it takes to tell them apart: model/projector -> projector."""
    return {
        key: next(s for s in _list_suffixes(key) if sum(s in _list_suffixes(k) for k in keys) == 1 or s == key)
        for key in keys
    }


def _list_suffixes(key: str) -> list[str]:
    words = re.split(r"[/.]", key.lstrip("+~"))
    return [*(".".join(words[i:]) for i in reversed(range(len(words)))), key]


def _name_trials(axes: Sequence[Axis], combinations: Sequence[Mapping[str, str]]) -> list[SweepTrial]:
    shown = shorten_keys(_list_keys(axes))
    names = ["_".join(f"{_to_slug(shown[k])}-{_to_slug(v)}" for k, v in chosen.items()) for chosen in combinations]
    times, trials = Counter(names), []
    for name, chosen in zip(names, combinations, strict=True):
        if times[name] > 1 or len(name) > LONGEST_NAME:  # it gets a digest of its own
            digest = hashlib.sha256(json.dumps(list(chosen.items())).encode()).hexdigest()[:8]
            name = f"{name[: LONGEST_NAME - 9]}-{digest}"
        trials.append(SweepTrial(name, chosen))
    return trials


def _to_slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "empty"


# The folder of a sweep ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sweep:
    """What `sweep.json` holds: the trials, and how they are compared.

    overrides: those that all trials share. score: what ranks them (see `mmblocks.sweep.scores`). visuals: words such as image=1000x700 (see `mmblocks.model.budget.parse_visual_shape`) for which tokens and FLOPs are counted.
    """

    recipe: str
    overrides: tuple[str, ...]
    trials: tuple[SweepTrial, ...]
    score: Mapping[str, Any]
    visuals: tuple[str, ...]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Sweep:
        """Raises `ConfigError` where there is no sweep."""
        if not (folder / SWEEP).is_file():
            raise ConfigError(f"{folder} is not the folder of a sweep: it has no {SWEEP}.")
        raw = read_json(folder / SWEEP)
        if not isinstance(raw.get("score"), Mapping):
            raise ConfigError(
                f"{folder / SWEEP} was written by an earlier version; give the command of the sweep again, which trains nothing again."
            )
        listed = {key: tuple(raw[key]) for key in ("overrides", "visuals")}
        return cls(**{**raw, **listed, "trials": tuple(SweepTrial(**trial) for trial in raw["trials"])})

    def read_result(self, folder: Path, trial: SweepTrial) -> dict[str, Any] | None:
        """What came of a trial, or None as long as it has not ended, or where it was scored in another way."""
        path = folder / trial.name / RESULT
        found = read_json(path) if path.is_file() else None
        return None if found is None or (found["status"] == "done" and found["scoring"] != self.score) else found

    def list_unfinished(self, folder: Path) -> list[int]:
        """Numbers of the trials that have no score yet, failed ones included."""
        results = [self.read_result(folder, trial) for trial in self.trials]
        return [number for number, found in enumerate(results) if found is None or found["status"] != "done"]


def read_json(path: Path) -> Any:
    """A file of ours. Raises `ConfigError` where somebody has cut it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:  # not UTF-8, or not JSON
        raise ConfigError(
            f"{path} is not JSON ({cause}); delete it, or the folder it is in, and start again."
        ) from cause
