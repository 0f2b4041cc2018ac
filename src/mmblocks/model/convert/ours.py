"""mmblocks' own folders of components, as one layout among the others."""

from dataclasses import replace
from pathlib import Path

import torch

from mmblocks.model import checkpoint
from mmblocks.model.build import build_template
from mmblocks.model.convert.chat import ASKED_FOR, ChatChoice
from mmblocks.model.convert.layout import CheckpointLayout, Runner
from mmblocks.model.convert.probe import compute_our_logits
from mmblocks.model.convert.weights import MatchedTensors
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec


class OurLayout(CheckpointLayout):
    """A model saved by mmblocks. Parts are one file each, whatever `max_shard_size` says."""

    about = "a model saved by mmblocks"
    can_run = True

    def can_read(self, folder: Path) -> bool:
        return checkpoint.is_saved_model(folder)

    def read_spec(self, folder: Path, template: str | None = None) -> ModelSpec:
        stored = checkpoint.localise_spec(checkpoint.read_spec(folder), folder)
        return stored if template is None else replace(stored, template=template)

    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        model = checkpoint.load(folder, dtype=dtype)
        chat = ChatChoice(model.spec.template, "its own") if template is None else ChatChoice(template, ASKED_FOR)
        if template is not None:
            model.spec = replace(model.spec, template=template)
            model.template = build_template(template, model.backbone)
        return model, MatchedTensors("mmblocks", model.state_dict(), {}, str(chat))

    def reasons_against_export(self, model: OneVision) -> list[str]:
        return []

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        return checkpoint.save(model, folder, dtype=dtype)

    def make_runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        model = checkpoint.load(folder, dtype=dtype)
        return lambda _, probe, rows: compute_our_logits(model, probe, rows)


LAYOUT = OurLayout()
