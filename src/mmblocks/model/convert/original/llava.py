"""LLaVA's own checkpoints as models of ours, in both directions: 1.5, NeXT, NeXT-Video and OneVision.

Code: https://github.com/haotian-liu/LLaVA and https://github.com/LLaVA-VL/LLaVA-NeXT.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mmblocks.model.convert import keys, raw_config
from mmblocks.model.convert.chat import chat_of
from mmblocks.model.convert.door import Layout, naming
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original import towers as original_towers
from mmblocks.model.convert.original.config import reasons_against, spec_of, text_config
from mmblocks.model.convert.original.export import export_original, reasons_against_export
from mmblocks.model.convert.original.pickled import read_pickled_folder
from mmblocks.model.convert.text import assembled, refuse, tokenizer_of
from mmblocks.model.convert.weights import SINGLE, Matched, read_weights
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import INDEX, read_own_config

__all__ = ["DOOR", "export_original", "import_original", "import_original_with_report", "reads"]


def import_original(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> OneVision:
    """Read a local checkpoint in the layout that LLaVA was released in, with a CLIP or SigLIP tower.

    The tower's sizes come from the name in `mm_vision_tower` or the config.json of that folder; its weights too where
    the checkpoint has none, as LLaVA 1.5's. Raises `ConfigError` listing what we do not compute in the same way,
    `CheckpointError` listing every tensor that is missing, extra or reshaped.
    """
    return import_original_with_report(folder, dtype=dtype)[0]


def import_original_with_report(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, template: str | None = None
) -> tuple[OneVision, Matched]:
    """`import_original`, and how each tensor was accounted for. template: one in place of the checkpoint's own."""
    with _config_of_its_time(), naming(Path(folder)):
        model, found = _imported(Path(folder), dtype, template)
        if model.backbone.tokenizer_source is not None:
            assert model.backbone.text_tokenizer  # read once and kept, here, where its warnings are known
    return model, found


def _imported(folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, Matched]:
    config = read_own_config(Path(folder))
    refuse(folder, reasons_against(config))
    stored = _weights(folder)
    tower = original_towers.named_tower(str(config.get("mm_vision_tower")), folder)
    inside = original_towers.has_tower(stored)
    if inside:
        tower = original_towers.require_stored(tower, stored, folder)
    text = text_config(config)
    tokenizer = tokenizer_of(folder)
    chat = chat_of(folder, tokenizer, template)
    spec = spec_of(config, text, tower, folder, tokenizer, chat)
    if not inside:
        stored = {**stored, **original_towers.fetched_tensors(spec.encoder)}
    layouts = {"LLaVA": keys.original(original_projectors.names_of(config["mm_projector_type"]))}
    return assembled(spec, text, stored, layouts, dtype, folder, chat)


@contextmanager
def _config_of_its_time() -> Iterator[None]:
    """transformers reads config.json to choose a text tokenizer, and would warn of keys that were right when it was
    written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`rope_scaling` is deprecated", category=FutureWarning)
        yield


def _weights(folder: Path) -> Mapping[str, Tensor]:
    """LLaVA 1.5 was released as torch pickles; those are read without running code."""
    if not (folder / INDEX).is_file() and not (folder / SINGLE).is_file() and any(folder.glob("pytorch_model*.bin")):
        return read_pickled_folder(folder)
    return read_weights(folder)


def reads(folder: Path) -> bool:
    """Whether a folder's config.json is one that LLaVA's own code writes."""
    config = raw_config(folder)
    return "mm_vision_tower" in config and "mm_projector_type" in config


DOOR = Layout(
    "LLaVA's own layout (LLaVA, LLaVA-NeXT)",
    reads,
    import_original_with_report,
    reasons_against_export,
    export_original,
)
