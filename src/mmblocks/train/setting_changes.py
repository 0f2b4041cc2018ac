"""Which settings may change when a run resumes; all others make it another run."""

import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from mmblocks.errors import ConfigError
from mmblocks.settings import find_differing_keys
from mmblocks.train.stages import EncoderPretraining, Lora, PartSettings, Stage

log = logging.getLogger(__name__)

CHANGEABLE_ON_RESUME: Mapping[str, Literal["same result", "same steps", "later steps"]] = {
    **dict.fromkeys(("accumulate", "cache_features", "compile", "device", "gradient_checkpointing"), "same result"),
    **dict.fromkeys(("export", "keep", "out", "save_every", "track"), "same result"),
    **dict.fromkeys(("resume", "resume_changed_data"), "same result"),
    **dict.fromkeys(("threads", "timeout_s", "video_deadline_s", "workers"), "same result"),
    **dict.fromkeys(("last_stage", "log_every"), "same steps"),
    **{f"encoder_pretraining.{key}": "later steps" for key in ("lr", "max_grad_norm", "warmup", "weight_decay")},
    **{f"stages.*.{key}": "later steps" for key in ("beta2", "max_grad_norm", "precision", "schedule", "warmup")},
    **{f"stages.*.{key}": "later steps" for key in ("weight_decay", "train.*.lr", "train.*.weight_decay")},
}
"""Settings that may change when a run resumes, by what they change ("*" is any one name): nothing of the result; where it ends
or what it reports of the same steps; the steps still to come, which is logged.
"""


def select_identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe must share with the run that it resumes, and the settings whose changes are logged."""
    return {key: value for key, value in recipe.items() if key not in CHANGEABLE_ON_RESUME}


def accept_changes(out: Path, before: Mapping[str, Any], now: Mapping[str, Any], stage: int) -> None:
    """Log which settings have changed since a run was stopped in stage `stage`.

    Raises `ConfigError` for settings that make another run, or belong to a stage that is finished.
    """
    before, now = _write_out_defaults(before), _write_out_defaults(now)
    changed = find_differing_keys(before, now)
    lines = {
        key: f"{key}: {_find_value(before, key)} -> {_find_value(now, key)}"
        for key in changed
        if re.sub(r"(?<=^stages\.)\d+|(?<=\.train\.)\w+", "*", key) in CHANGEABLE_ON_RESUME
    }
    is_pretrained = (out / "stages" / "encoder_pretraining").is_dir()
    done = [key for key in lines if (int(key.split(".")[1]) < stage if key.startswith("stages.") else is_pretrained)]
    if other := [key for key in changed if key not in lines or key in done]:
        late = f" ({', '.join(lines[key] for key in done)} comes too late: that is learned already.)" if done else ""
        raise ConfigError(
            f"{out} holds a run with other settings ({', '.join(other)}); choose another folder (out=...), or begin anew "
            f"with resume=false.{late}"
        )
    for line in lines.values():
        log.warning("resuming with another setting: %s", line)


def _write_out_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the defaults of its stages written out, so that naming one is no change."""
    filled = dict(recipe)
    if isinstance(filled.get("encoder_pretraining"), Mapping):
        filled["encoder_pretraining"] = _add_defaults(EncoderPretraining, filled["encoder_pretraining"])
    if isinstance(filled.get("stages"), list | tuple):
        filled["stages"] = [_add_defaults(Stage, s) if isinstance(s, Mapping) else s for s in filled["stages"]]
        for stage in filled["stages"]:
            if isinstance(stage, dict) and isinstance(stage.get("train"), Mapping):
                parts = {part: how if isinstance(how, Mapping) else {"lr": how} for part, how in stage["train"].items()}
                schemas = {part: Lora if part == "lora" else PartSettings for part in parts}
                stage["train"] = {part: _add_defaults(schemas[part], how) for part, how in parts.items()}
    return filled


def _add_defaults(schema: type, given: Mapping[str, Any]) -> dict[str, Any]:
    values = {f.name: f.default for f in fields(schema) if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in fields(schema) if f.default_factory is not MISSING}
    return {**values, **made, **given}


def _find_value(nest: Any, key: str) -> Any:
    """The value of a nest of plain values under a dotted key."""
    for name in key.split("."):
        nest = nest[int(name)] if isinstance(nest, list) else nest[name]
    return nest
