"""mmblocks' own folders of components, seen as one layout among the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mmblocks.model import checkpoint
from mmblocks.model.build import wire_template
from mmblocks.model.convert import raw_config
from mmblocks.model.convert.chat import ASKED_FOR, ChatChoice
from mmblocks.model.convert.door import Layout, Runner
from mmblocks.model.convert.probe import our_logits
from mmblocks.model.convert.weights import Matched
from mmblocks.model.onevision import OneVision


def reads(folder: Path) -> bool:
    """Whether a folder is a model saved by mmblocks."""
    config = raw_config(folder)
    return "mmblocks" in config and "model" in config


def import_(folder: Path, *, dtype: torch.dtype, template: str | None = None) -> tuple[OneVision, Matched]:
    """Load it; every tensor of it is used, or loading fails."""
    model = checkpoint.load(folder, dtype=dtype)
    chat = ChatChoice(model.spec.template, "its own") if template is None else ChatChoice(template, ASKED_FOR)
    if template is not None:
        model.spec = replace(model.spec, template=template)
        model.template = wire_template(template, model.backbone)
    return model, Matched("mmblocks", model.state_dict(), {}, str(chat))


def export(model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB") -> Path:
    """Save it; parts are one file each, whatever `max_shard_size` says."""
    return checkpoint.save(model, folder, dtype=dtype)


def run(folder: Path, dtype: torch.dtype) -> Runner:
    loaded = checkpoint.load(folder, dtype=dtype)
    return lambda _, probe, rows: our_logits(loaded, probe, rows)


DOOR = Layout("a model saved by mmblocks", reads, import_, lambda _: [], export, run)
