"""Choose what learns by object, never by a piece of a parameter's name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS
from mmblocks.settings import did_you_mean


def part(model: OneVision, name: str) -> nn.Module:
    """A part of a model by its name. Raises `ConfigError` for another name."""
    if name not in PARTS:
        raise ConfigError(f"the model has no part {name!r}.{did_you_mean(name, PARTS)}")
    return getattr(model, name)


def train_only(model: OneVision, names: Iterable[str]) -> None:
    """Let the named parts learn and freeze the others."""
    wanted = {name: part(model, name) for name in names}
    for name in PARTS:
        part(model, name).requires_grad_(name in wanted)
