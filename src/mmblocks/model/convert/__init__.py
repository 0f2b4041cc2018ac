"""The doors to other checkpoint layouts: a table from their names to the modules that know them. Imports no torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.settings import did_you_mean

if TYPE_CHECKING:
    from mmblocks.model.convert.door import Door
    from mmblocks.model.onevision import OneVision

DOORS: dict[str, str] = {
    "mmblocks": "ours",
    "llava": "transformers.llava",
    "llava_next": "transformers.llava_next",
    "llava_next_video": "transformers.llava_next_video",
    "llava_onevision": "transformers.llava_onevision",
    "blip-2": "transformers.blip2",
    "instructblip": "transformers.instructblip",
    "original": "original.llava",
}
"""Layout -> module of this package that holds its `DOOR`. The first whose `reads` says yes is taken."""
READ_ONLY = ("blip-2", "instructblip")
WRITTEN = tuple(name for name in DOORS if name not in READ_ONLY)


def door_of(name: str) -> Door:
    """The door to a layout. Raises `ConfigError` for a name that is not known."""
    if name not in DOORS:
        raise ConfigError(f"no layout is called {name!r}.{did_you_mean(name, DOORS)}")
    return import_module(f"{__name__}.{DOORS[name]}").DOOR


def detect(folder: Path | str) -> str:
    """Which layout a checkpoint folder has. Raises `CheckpointError` for one that is not known here."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; download the checkpoint first and give its path.")
    found = next((name for name in DOORS if door_of(name).reads(folder)), None)
    if found is None:
        config, known = raw_config(folder), "; ".join(door_of(name).about for name in DOORS)
        raise CheckpointError(
            f"{folder} holds a {config.get('model_type')!r} model of {config.get('architectures')}, "
            f"which cannot be converted. Known: {known}."
        )
    return found


def fitting_family(model: OneVision) -> str:
    """The family of transformers that can express a model, one with clips if there is. Raises `ConfigError` with reasons."""
    families = [name for name, module in DOORS.items() if module.startswith("transformers.llava")]
    families.sort(key=lambda name: not door_of(name).clips)
    reasons = {name: door_of(name).reasons_against_export(model) for name in families}
    fitting = next((name for name in families if not reasons[name]), None)
    if fitting is None:
        listed = "\n".join(f"  {name}:\n" + "\n".join(f"  - {r}" for r in reasons[name]) for name in families)
        raise ConfigError(f"no family of transformers can express this model:\n{listed}")
    return fitting


def export_to_transformers(model: OneVision, folder: Path) -> None:
    """Write a model as the family of transformers that can express it. Raises `ConfigError` with reasons where none can."""
    from mmblocks.storage import replaced_whole

    door = door_of(fitting_family(model))
    with replaced_whole(folder) as fresh:
        door.export(model, fresh)


def raw_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json as it stands; empty when there is none. Raises `CheckpointError` when it is cut."""
    from mmblocks.pretrained import read_own_config

    return read_own_config(folder) if (folder / "config.json").is_file() else {}


def quiet_transformers() -> None:
    """Silence transformers' progress bars and notes: a command that reads a model six times says what matters itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
