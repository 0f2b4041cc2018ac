"""Layouts of transformers: what all its families of vision-language models share, and import of any of them."""

from pathlib import Path

import torch

from mmblocks.errors import CheckpointError
from mmblocks.model.convert import LAYOUTS, layout_of, read_raw_config
from mmblocks.model.convert.layout import CheckpointLayout, Runner
from mmblocks.model.convert.probe import compute_transformers_logits, load_transformers
from mmblocks.model.convert.weights import MatchedTensors
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import read_local_config


class HFLayout(CheckpointLayout):
    """The checkpoints of one model_type, whose own code is transformers'."""

    model_type: str
    can_run = True

    def can_read(self, folder: Path) -> bool:
        config = read_raw_config(folder)
        return (
            config.get("model_type") == self.model_type and "mm_vision_tower" not in config
        )  # LLaVA's code writes that

    def make_runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        theirs = load_transformers(folder, dtype)
        return lambda model, probe, rows: compute_transformers_logits(theirs, model, probe, rows)


def import_hf(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> OneVision:
    """Read a local checkpoint of transformers in any layout that transformers has written, or the hub's.

    Raises `ConfigError` listing what its config needs and we do not compute in the same way, `CheckpointError` listing
    every tensor that is missing, extra or of another shape.
    """
    return import_hf_with_report(folder, dtype=dtype)[0]


def import_hf_with_report(
    folder: Path | str, *, dtype: torch.dtype = torch.float32
) -> tuple[OneVision, MatchedTensors]:
    """`import_hf`, and how each tensor was accounted for."""
    folder = Path(folder)
    model_type = read_local_config(folder).get("model_type")
    families = [name for name, module in LAYOUTS.items() if module.startswith("transformers.")]
    if model_type not in families:
        raise CheckpointError(f"{folder} holds a {model_type!r} model; {', '.join(families)} are read.")
    return layout_of(str(model_type)).import_model(folder, dtype=dtype)
