"""What may change in a run that goes on: how fast it learns, as long as that is still to come. All else makes another run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.settings import find_differing_keys
from mmblocks.train.stages import EncoderPretraining, Lora, PartSettings, Stage

log = logging.getLogger(__name__)

CHANGEABLE_KEYS = re.compile(
    r"stages\.\d+\.(warmup|schedule|weight_decay|max_grad_norm|beta2|precision|train\.\w+\.(lr|weight_decay))"
    r"|encoder_pretraining\.(lr|warmup|weight_decay|max_grad_norm)"
)
"""Settings of a stage, and of the encoder's pretraining, with which a stopped run may go on changed."""


def accept_changes(out: Path, before: Mapping[str, Any], now: Mapping[str, Any], stage: int) -> None:
    """Log what has changed in a run's settings since it was stopped in a stage of this number.

    Raises `ConfigError` for settings that are another run's, or of a stage that is finished.
    """
    before, now = _fill_defaults(before), _fill_defaults(now)
    changed = find_differing_keys(before, now)
    lines = {
        key: f"{key}: {_find_value(before, key)} -> {_find_value(now, key)}"
        for key in changed
        if CHANGEABLE_KEYS.fullmatch(key)
    }
    done = [key for key in lines if _is_done(out, key, stage)]
    if other := [key for key in changed if key not in lines or key in done]:
        learned = f" ({', '.join(lines[key] for key in done)} comes too late: that is learned already.)" if done else ""
        raise ConfigError(
            f"{out} holds a run with other settings ({', '.join(other)}); choose another folder (out=...), or begin anew "
            f"with resume=false.{learned}"
        )
    for line in lines.values():
        log.warning("going on with another setting: %s", line)


def _is_done(out: Path, key: str, stage: int) -> bool:
    """Whether what a setting is for has been learned."""
    if key.startswith("encoder_pretraining."):
        return (out / "stages" / "encoder_pretraining").is_dir()
    return int(key.split(".")[1]) < stage


def _fill_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the defaults of its stages written out, so that writing one is no change."""
    given = dict(recipe)
    if isinstance(given.get("encoder_pretraining"), Mapping):
        given["encoder_pretraining"] = _list_defaults(EncoderPretraining) | {**given["encoder_pretraining"]}
    if isinstance(given.get("stages"), list | tuple):
        given["stages"] = [_stage(stage) if isinstance(stage, Mapping) else stage for stage in given["stages"]]
    return given


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    train = stage.get("train")
    learns = {part: _learner(part, how) for part, how in train.items()} if isinstance(train, Mapping) else train
    return _list_defaults(Stage) | {**stage, "train": learns}


def _learner(part: str, given: Any) -> dict[str, Any]:
    how = given if isinstance(given, Mapping) else {"lr": given}
    return _list_defaults(Lora if part == "lora" else PartSettings) | {**how}


def _list_defaults(schema: type) -> dict[str, Any]:
    return {f.name: _default(f) for f in fields(schema) if (f.default, f.default_factory) != (MISSING, MISSING)}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]


def _find_value(nest: Any, key: str) -> Any:
    """What stands in a nest of plain values under a key with dots."""
    for name in key.split("."):
        nest = nest[int(name)] if isinstance(nest, list) else nest[name]
    return nest
