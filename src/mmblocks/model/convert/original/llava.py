"""LLaVA's own checkpoints as models of ours, in both directions: 1.5, NeXT, NeXT-Video and OneVision.

Code: https://github.com/haotian-liu/LLaVA and https://github.com/LLaVA-VL/LLaVA-NeXT.
"""

import warnings
from pathlib import Path

import torch

from mmblocks.model.convert import keys, read_raw_config
from mmblocks.model.convert.chat import choose_chat_template
from mmblocks.model.convert.layout import CheckpointLayout, name_in_errors
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original import towers as original_towers
from mmblocks.model.convert.original.config import make_spec, make_text_config, reasons_against
from mmblocks.model.convert.original.export import export_original, reasons_against_export
from mmblocks.model.convert.pickled import read_pickled_folder
from mmblocks.model.convert.text import build_from_tensors, read_checkpoint_tokenizer, refuse_conversion
from mmblocks.model.convert.weights import SINGLE, MatchedTensors, StoredTensors
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import INDEX, read_local_config

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
    with warnings.catch_warnings(), name_in_errors(Path(folder)):
        # transformers reads config.json to choose a text tokenizer, and warns of keys that were right at the time.
        warnings.filterwarnings("ignore", message="`rope_scaling` is deprecated", category=FutureWarning)
        model, matched = _read_model(Path(folder), dtype, template)
        if model.backbone.tokenizer_source is not None:
            assert model.backbone.text_tokenizer  # read here and kept, while its warnings are ignored
    return model, matched


def _read_model(folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
    config = read_local_config(folder)
    refuse_conversion(folder, reasons_against(config))
    has_safetensors = (folder / INDEX).is_file() or (folder / SINGLE).is_file()
    if not has_safetensors and any(folder.glob("pytorch_model*.bin")):
        stored = read_pickled_folder(folder)  # LLaVA 1.5 was released as torch pickles
    else:
        stored = StoredTensors(folder)
    tower = original_towers.read_named_tower(str(config.get("mm_vision_tower")), folder)
    holds_tower = original_towers.has_tower(stored)
    if holds_tower:
        tower = original_towers.require_matching_tower(tower, stored, folder)
    text = make_text_config(config)
    tokenizer = read_checkpoint_tokenizer(folder)
    chat = choose_chat_template(folder, tokenizer, template)
    spec = make_spec(config, text, tower, folder, tokenizer, chat)
    if not holds_tower:
        stored = {**stored, **original_towers.fetch_tensors(spec.encoder)}
    layouts = {"LLaVA": keys.make_original_table(original_projectors.make_name_table(config["mm_projector_type"]))}
    return build_from_tensors(spec, text, stored, layouts, dtype, folder, chat)


class OriginalLayout(CheckpointLayout):
    """A config.json and weights as LLaVA's own code writes them."""

    about = "LLaVA's own layout (LLaVA, LLaVA-NeXT)"

    def can_read(self, folder: Path) -> bool:
        config = read_raw_config(folder)
        return "mm_vision_tower" in config and "mm_projector_type" in config

    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        return import_original_with_report(folder, dtype=dtype, template=template)

    def reasons_against_export(self, model: OneVision) -> list[str]:
        return reasons_against_export(model)

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        return export_original(model, folder, dtype=dtype, max_shard_size=max_shard_size)


LAYOUT = OriginalLayout()
