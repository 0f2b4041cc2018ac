"""Import and export of other checkpoint layouts: a table from their names to their modules. Imports no torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.settings import format_suggestion

if TYPE_CHECKING:
    from mmblocks.model.convert.layout import CheckpointLayout
    from mmblocks.model.onevision import OneVision

LAYOUTS: dict[str, str] = {
    "mmblocks": "ours",
    "adapter": "adapter",
    "llava": "transformers.llava",
    "llava_next": "transformers.llava_next",
    "llava_next_video": "transformers.llava_next_video",
    "llava_onevision": "transformers.llava_onevision",
    "blip-2": "transformers.blip2",
    "instructblip": "transformers.instructblip",
    "original": "original.llava",
}
"""Layout -> module of this package that holds its `LAYOUT`. The first whose `can_read` is true is taken."""
READ_ONLY = ("adapter", "blip-2", "instructblip")
WRITABLE = tuple(name for name in LAYOUTS if name not in READ_ONLY)


def layout_of(name: str) -> CheckpointLayout:
    """The layout of a name. Raises `ConfigError` for an unknown one."""
    if name not in LAYOUTS:
        raise ConfigError(f"no layout is called {name!r}.{format_suggestion(name, LAYOUTS)}")
    return import_module(f"{__name__}.{LAYOUTS[name]}").LAYOUT


def detect_layout(folder: Path | str) -> str:
    """The layout of a checkpoint folder. Raises `CheckpointError` for an unknown one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; download the checkpoint first and give its path.")
    for name in LAYOUTS:
        if layout_of(name).can_read(folder):
            return name
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a model: it has no config.json.")
    config, known = read_raw_config(folder), "; ".join(layout_of(name).about for name in LAYOUTS)
    raise CheckpointError(
        f"{folder} holds a {config.get('model_type')!r} model of {config.get('architectures')}, "
        f"which cannot be converted. Known: {known}."
    )


def find_fitting_family(model: OneVision) -> str:
    """The family of transformers that can express a model, one with videos if possible. Raises `ConfigError` with reasons."""
    families = [name for name, module in LAYOUTS.items() if module.startswith("transformers.llava")]
    families.sort(key=lambda name: not layout_of(name).supports_video)
    reasons = {name: layout_of(name).reasons_against_export(model) for name in families}
    for name in families:
        if not reasons[name]:
            return name
    listed = "\n".join(f"  {name}:\n" + "\n".join(f"  - {r}" for r in reasons[name]) for name in families)
    raise ConfigError(f"no family of transformers can express this model:\n{listed}")


def export_to_transformers(model: OneVision, folder: Path) -> None:
    """Write a model as the family of transformers that can express it. Raises `ConfigError` with reasons where none can."""
    layout_of(find_fitting_family(model)).export_model(model, folder)


def read_raw_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json; empty when there is none. Raises `CheckpointError` when it is damaged."""
    from mmblocks.pretrained import read_local_config

    return read_local_config(folder) if (folder / "config.json").is_file() else {}


def silence_transformers() -> None:
    """Silence transformers' progress bars and warnings, for a command that reads a model several times."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
