"""Where a run stands on disk, so that a stopped run goes on as if it had never stopped.

What learns, the optimizer's moments and the moving average are written by torch's distributed checkpoint, from any number
of processes and back into any number. What does not learn is in the model that the stage started from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from mmblocks.errors import CheckpointError
from mmblocks.train.changes import accept_changes
from mmblocks.train.distributed import World

STATE, PLACE = "state", "place.json"
LEARNED = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The next step to take: stage number and step in it."""

    stage: int = 0
    step: int = 0

    @property
    def folder(self) -> str:
        return f"{self.stage}-{self.step}"


def claim(out: Path, recipe: dict[str, Any], *, resume: bool) -> Place:
    """Take a folder for a run and say where to begin. Raises `ConfigError` when another run lives there."""
    written = out / "run.json"
    if written.is_file() and not resume:
        for left in (STATE, "stages", "best"):
            shutil.rmtree(out / left, ignore_errors=True)
        for left in ("metrics.jsonl", "broken.jsonl", "cut.jsonl"):
            (out / left).unlink(missing_ok=True)
    elif written.is_file():
        before = json.loads(written.read_text(encoding="utf-8"))
        accept_changes(out, before, recipe, max(places(out), default=Place()).stage)
    (out / STATE).mkdir(parents=True, exist_ok=True)
    for cut in (out / STATE).glob(".*"):  # a save that was interrupted
        shutil.rmtree(cut)
    written.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return max(places(out), default=Place())


def places(out: Path) -> list[Place]:
    """The states that are whole, in the order they were written."""
    names = (re.fullmatch(r"(\d+)-(\d+)", path.parent.name) for path in (out / STATE).glob(f"*/{PLACE}"))
    return sorted(Place(int(name[1]), int(name[2])) for name in names if name)


def notes_of(out: Path, place: Place) -> dict[str, Any]:
    """What was noted beside a state; nothing at the beginning of a run."""
    file = out / STATE / place.folder / PLACE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def save_state(
    out: Path,
    place: Place,
    model: nn.Module,
    optimizer: Optimizer,
    world: World,
    *,
    extra: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    keep: int = 1,
) -> None:
    """Write what a run needs to go on at `place`, whole or not at all; the last `keep` states stay.

    extra: further tensors by name, such as a moving average. notes: plain values. Every process takes part.
    """
    fresh = out / STATE / f".{place.folder}"
    _write(_state(model, optimizer, extra), fresh, world)
    if world.is_first:
        (fresh / PLACE).write_text(json.dumps({**asdict(place), **(notes or {})}), encoding="utf-8")
        _put_in_place(fresh, out / STATE / place.folder)
        for old in places(out)[:-keep]:
            shutil.rmtree(out / STATE / old.folder)
    world.wait()


def begin_stage(out: Path, stage: int, world: World, *, notes: Mapping[str, Any] | None = None) -> None:
    """Note that a stage is next and nothing of it is done: the states of the stage before are not needed any more."""
    if world.is_first:
        fresh = out / STATE / f".{Place(stage).folder}"
        fresh.mkdir(exist_ok=True)
        (fresh / PLACE).write_text(json.dumps({**asdict(Place(stage)), **(notes or {})}), encoding="utf-8")
        _put_in_place(fresh, out / STATE / Place(stage).folder)
        for old in places(out):
            if old.stage < stage:
                shutil.rmtree(out / STATE / old.folder)
    world.wait()


def restore_state(
    out: Path,
    place: Place,
    model: nn.Module,
    optimizer: Optimizer,
    world: World,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Fill model, optimizer and the tensors of `extra` in place from the state written at `place`.

    The optimizer keeps its own rates, decays and betas, which may have changed since.
    """
    folder = out / STATE / place.folder
    state = _state(model, optimizer, extra)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(single process|process group)")
            load(state, checkpoint_id=folder, no_dist=world.is_alone)
    except CheckpointException as cause:  # derives from BaseException
        raise CheckpointError(
            f"{folder} cannot be read ({cause}); remove it to go on from an older state, or begin anew with resume=false."
        ) from cause
    set_model_state_dict(model, state["model"], options=StateDictOptions(ignore_frozen_params=True, strict=False))
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=LEARNED)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def _state(model: nn.Module, optimizer: Optimizer, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model, options=LEARNED),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=LEARNED),
        "extra": dict(extra or {}),
    }


def _write(state: dict[str, Any], folder: Path, world: World) -> None:
    if world.is_first:
        shutil.rmtree(folder, ignore_errors=True)
    world.wait()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(single process|process group)")
        save(state, checkpoint_id=folder, no_dist=world.is_alone)
    world.wait()


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename a folder so that after a power cut it is there whole or not at all."""
    shutil.rmtree(folder, ignore_errors=True)
    _flush(fresh)
    fresh.replace(folder)
    _flush(folder.parent)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
