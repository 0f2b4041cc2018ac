"""LLaVA's own checkpoints as models of ours, in both directions: 1.5, NeXT, NeXT-Video and OneVision.

Code: https://github.com/haotian-liu/LLaVA and https://github.com/LLaVA-VL/LLaVA-NeXT.
"""

from __future__ import annotations

import warnings
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmblocks.model.convert import keys, read_raw_config
from mmblocks.model.convert.chat import ChatChoice, choose_chat_template
from mmblocks.model.convert.layout import CheckpointLayout, name_in_errors
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original import towers as original_towers
from mmblocks.model.convert.original.config import make_spec, make_text_config, reasons_against
from mmblocks.model.convert.original.export import export_original, reasons_against_export
from mmblocks.model.convert.text import build_from_tensors, read_checkpoint_tokenizer, refuse_conversion
from mmblocks.model.convert.weights import MatchedTensors, open_tensors
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.pretrained import read_local_config
from mmblocks.reprs import format_by_shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["LAYOUT", "export_original", "import_original", "import_original_with_report"]


def import_original(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> OneVision:
    """Read a local checkpoint in the layout of LLaVA's releases, with a CLIP or SigLIP tower.

    The tower's sizes come from the name in `mm_vision_tower` or the config.json of that folder; its weights too where
    the checkpoint has none, as LLaVA 1.5's. Raises `ConfigError` listing what we do not compute in the same way,
    `CheckpointError` listing every tensor that is missing, extra or reshaped.
    """
    return import_original_with_report(folder, dtype=dtype)[0]


def import_original_with_report(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, template: str | None = None
) -> tuple[OneVision, MatchedTensors]:
    """`import_original`, and how each tensor was accounted for. template: one in place of the checkpoint's own."""
    folder = Path(folder)
    with name_in_errors(folder):
        return import_original_folder(LLaVAFolder(folder, open_tensors(folder), folder), dtype, template)


@contextmanager
def _ignore_rope_warning() -> Iterator[None]:
    """transformers reads config.json to choose a text tokenizer, and warns of keys that were right at the time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`rope_scaling` is deprecated", category=FutureWarning)
        yield


@dataclass(frozen=True, slots=True)
class LLaVAFolder:
    """Where a LLaVA's settings, tensors and text tokenizer are: one folder, or that of an adapter and that of its base."""

    folder: Path
    stored: Mapping[str, Tensor]
    tokenizer_folder: Path
    __repr__ = format_by_shape

    def read_spec(self, template: str | None) -> ModelSpec:
        """The composition; no value of a tensor is read."""
        with _ignore_rope_warning():
            return self.read_checkpoint(template).spec

    def read_checkpoint(self, template: str | None) -> _Checkpoint:
        config = read_local_config(self.folder)
        refuse_conversion(self.folder, reasons_against(config))
        tower = original_towers.read_named_tower(str(config.get("mm_vision_tower")), self.folder)
        holds_tower = original_towers.has_tower(self.stored)
        if holds_tower:
            tower = original_towers.require_matching_tower(tower, self.stored, self.folder)
        text = make_text_config(config)
        tokenizer = read_checkpoint_tokenizer(self.tokenizer_folder)
        chat = choose_chat_template(self.folder, tokenizer, template)
        spec = make_spec(config, text, tower, self.tokenizer_folder, tokenizer, chat)
        return _Checkpoint(spec, text, chat, holds_tower)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """What a checkpoint's files say before its tensors are read."""

    spec: ModelSpec
    text: PreTrainedConfig
    chat: ChatChoice
    holds_tower: bool


def import_original_folder(
    source: LLaVAFolder, dtype: torch.dtype, template: str | None
) -> tuple[OneVision, MatchedTensors]:
    """The model, and how each tensor was accounted for."""
    with _ignore_rope_warning():
        found = source.read_checkpoint(template)
        stored: Any = source.stored
        if not found.holds_tower:
            stored = ChainMap(original_towers.fetch_tensors(found.spec.encoder), stored)
        projector = original_projectors.make_name_table(read_local_config(source.folder)["mm_projector_type"])
        layouts = {"LLaVA": keys.make_original_table(projector)}
        model, matched = build_from_tensors(found.spec, found.text, stored, layouts, dtype, source.folder, found.chat)
        if model.backbone.tokenizer_source is not None:
            assert model.backbone.text_tokenizer  # read here and kept, while its warnings are ignored
    return model, matched


class OriginalLayout(CheckpointLayout):
    """A config.json and weights as LLaVA's own code writes them."""

    about = "LLaVA's own layout (LLaVA, LLaVA-NeXT)"

    def can_read(self, folder: Path) -> bool:
        config = read_raw_config(folder)
        return "mm_vision_tower" in config and "mm_projector_type" in config

    def read_spec(self, folder: Path, template: str | None = None) -> ModelSpec:
        return LLaVAFolder(folder, open_tensors(folder), folder).read_spec(template)

    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        return import_original_with_report(folder, dtype=dtype, template=template)

    def reasons_against_export(self, model: OneVision) -> list[str]:
        return reasons_against_export(model)

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        return export_original(model, folder, dtype=dtype, max_shard_size=max_shard_size)


LAYOUT = OriginalLayout()
