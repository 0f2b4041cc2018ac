"""Where a run stands on disk, so that a stopped run goes on as if it had never stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.optim import Optimizer

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.checkpoint import read_tensors, replaced_whole
from mmblocks.model.onevision import OneVision

STATE, WEIGHTS, MOMENTS, PLACE = "state", "model.safetensors", "optimizer.safetensors", "place.json"


@dataclass(frozen=True, slots=True)
class Place:
    """The next step to take: stage number and step in it."""

    stage: int = 0
    step: int = 0


def claim(out: Path, recipe: dict[str, Any], *, resume: bool) -> Place:
    """Take a folder for a run and say where to begin. Raises `ConfigError` when another run lives there."""
    written = out / "run.json"
    if written.is_file() and not resume:
        shutil.rmtree(out / STATE, ignore_errors=True)
        (out / "metrics.jsonl").unlink(missing_ok=True)
    elif written.is_file() and json.loads(written.read_text(encoding="utf-8")) != recipe:
        raise ConfigError(
            f"{out} holds a run with other settings; choose another folder (out=...), or begin anew with resume=false."
        )
    out.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    place = out / STATE / PLACE
    return Place(**json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else Place()


def save_state(out: Path, place: Place, model: OneVision, optimizer: Optimizer | None) -> None:
    """Write weights, optimizer moments and place as one folder, whole or not at all."""
    with replaced_whole(out / STATE) as fresh:
        save_file(_unshared(model), fresh / WEIGHTS)
        if optimizer is not None:
            save_file(_moments(optimizer), fresh / MOMENTS)
        (fresh / PLACE).write_text(json.dumps(asdict(place)), encoding="utf-8")


def restore_model(out: Path, model: OneVision) -> None:
    """Fill a model with the weights of the run's state."""
    stored = read_tensors(out / STATE / WEIGHTS)
    wanted = _unshared(model)
    if stored.keys() != wanted.keys():
        raise CheckpointError(
            f"{out / STATE / WEIGHTS}: its keys differ from the model's: {sorted(stored.keys() ^ wanted.keys())}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def restore_optimizer(out: Path, optimizer: Optimizer) -> None:
    """Fill an optimizer with the moments of the run's state."""
    stored = read_tensors(out / STATE / MOMENTS)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _moments(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value.contiguous() for number, entry in state.items() for name, value in entry.items()}


def _unshared(model: OneVision) -> dict[str, torch.Tensor]:
    """The state dict with tensors that share memory (tied embeddings) kept once."""
    seen: dict[int, str] = {}
    return {
        name: tensor for name, tensor in model.state_dict().items() if seen.setdefault(tensor.data_ptr(), name) == name
    }
