"""mmblocks' own folders of components, seen as one layout among the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mmblocks.model import checkpoint
from mmblocks.model.build import build_template
from mmblocks.model.convert import read_raw_config
from mmblocks.model.convert.chat import ASKED_FOR, ChatChoice
from mmblocks.model.convert.door import FunctionLayout, Runner
from mmblocks.model.convert.probe import compute_our_logits
from mmblocks.model.convert.weights import MatchedTensors
from mmblocks.model.onevision import OneVision


def can_read(folder: Path) -> bool:
    """Whether a folder is a model saved by mmblocks."""
    config = read_raw_config(folder)
    return "mmblocks" in config and "model" in config


def import_model(folder: Path, *, dtype: torch.dtype, template: str | None = None) -> tuple[OneVision, MatchedTensors]:
    """Load it; every tensor of it is used, or loading fails."""
    model = checkpoint.load(folder, dtype=dtype)
    chat = ChatChoice(model.spec.template, "its own") if template is None else ChatChoice(template, ASKED_FOR)
    if template is not None:
        model.spec = replace(model.spec, template=template)
        model.template = build_template(template, model.backbone)
    return model, MatchedTensors("mmblocks", model.state_dict(), {}, str(chat))


def export_model(
    model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
) -> Path:
    """Save it; parts are one file each, whatever `max_shard_size` says."""
    return checkpoint.save(model, folder, dtype=dtype)


def load_runner(folder: Path, dtype: torch.dtype) -> Runner:
    loaded = checkpoint.load(folder, dtype=dtype)
    return lambda _, probe, rows: compute_our_logits(loaded, probe, rows)


LAYOUT = FunctionLayout("a model saved by mmblocks", can_read, import_model, lambda _: [], export_model, load_runner)
