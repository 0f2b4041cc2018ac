"""transformers' `instructblip`, import only: BLIP-2 with a Q-Former that reads the question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.model.convert.transformers.blip2 import Blip2Family, make_qformer_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TOKENIZER = "qformer_tokenizer"
"""Folder of the question's tokenizer inside a checkpoint."""


class InstructBlip(Blip2Family):
    """InstructBLIP with a causal language model (Vicuna)."""

    model_type = "instructblip"
    about = "transformers' instructblip"

    def make_projector_settings(self, config: PreTrainedConfig, folder: Path) -> dict[str, Any]:
        qformer = config.qformer_config
        texts = {"vocab_size": qformer.vocab_size, "max_text_tokens": qformer.max_position_embeddings}
        if (folder / TOKENIZER).is_dir():
            texts["text_tokenizer"] = str((folder / TOKENIZER).resolve())
        return {"name": "instruct_qformer", **make_qformer_settings(config), **texts}

    def find_unused_tensors(self, config: PreTrainedConfig) -> Mapping[str, str]:
        last = config.qformer_config.num_hidden_layers - 1
        pattern = rf"projector\.body\.qformer\.encoder\.layer\.{last}\.(intermediate|output)\."
        return {pattern: "the text's last feed-forward layer, whose result is never used"}


LAYOUT = InstructBlip()
