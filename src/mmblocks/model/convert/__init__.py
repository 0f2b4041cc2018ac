"""The door to other checkpoint layouts: transformers' `llava_onevision` in both directions, LLaVA-OneVision's own inwards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmblocks.errors import CheckpointError
from mmblocks.model.convert.weights import read_json

Kind = Literal["mmblocks", "llava_onevision", "llava"]
ABOUT: dict[Kind, str] = {
    "mmblocks": "a model saved by mmblocks",
    "llava_onevision": "transformers' llava_onevision",
    "llava": "LLaVA-OneVision's own layout (LLaVA-NeXT)",
}


def detect(folder: Path | str) -> Kind:
    """Which layout a checkpoint folder has. Raises `CheckpointError` for one that is not known here."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; download the checkpoint first and give its path.")
    config = read_json(folder / "config.json")
    if "mmblocks" in config and "model" in config:
        return "mmblocks"
    if config.get("model_type") == "llava_onevision":
        return "llava_onevision"
    if "mm_vision_tower" in config and "mm_projector_type" in config:
        return "llava"
    known = "; ".join(ABOUT.values())
    raise CheckpointError(
        f"{folder} holds a {config.get('model_type')!r} model of {config.get('architectures')}, "
        f"which cannot be converted. Known: {known}."
    )


def quiet_transformers() -> None:
    """Silence transformers' progress bars and notes: a command that reads a model six times says what matters itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
