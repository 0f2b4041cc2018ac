"""transformers' `instructblip` inwards: BLIP-2 with a Q-Former that reads the question."""

from __future__ import annotations

from pathlib import Path

import torch

from mmblocks.model.convert import keys
from mmblocks.model.convert.door import FunctionLayout
from mmblocks.model.convert.text import build_from_tensors, read_checkpoint_tokenizer
from mmblocks.model.convert.transformers.blip2 import (
    forbid_export,
    list_export_reasons,
    make_bare_chat,
    make_qformer_settings,
    make_spec,
)
from mmblocks.model.convert.transformers.families import can_read, load_runner, read_family_config
from mmblocks.model.convert.weights import MatchedTensors, read_weights
from mmblocks.model.onevision import OneVision

TOKENIZER = "qformer_tokenizer"
"""Folder of the question's tokenizer inside a checkpoint."""


def read_instructblip(
    folder: Path, *, dtype: torch.dtype = torch.float32, template: str | None = None
) -> tuple[OneVision, MatchedTensors]:
    """Read a local InstructBLIP checkpoint of transformers whose language model is causal (Vicuna), and how each tensor
    was accounted for.
    """
    config = read_family_config(folder, "instructblip")
    qformer = config.qformer_config
    words = {"vocab_size": qformer.vocab_size, "max_text_tokens": qformer.max_position_embeddings}
    if (folder / TOKENIZER).is_dir():
        words["text_tokenizer"] = str((folder / TOKENIZER).resolve())
    tokenizer = read_checkpoint_tokenizer(folder)
    chat = make_bare_chat(folder, tokenizer, template)
    projector = {"name": "instruct_qformer", **make_qformer_settings(config), **words}
    spec = make_spec(config, folder, projector, tokenizer, chat)
    last = rf"projector\.body\.qformer\.encoder\.layer\.{qformer.num_hidden_layers - 1}\.(intermediate|output)\."
    unused = {last: "the words' last feed-forward, whose result nobody reads"}
    layouts = {"instructblip": keys.BLIP2}
    return build_from_tensors(spec, config.text_config, read_weights(folder), layouts, dtype, folder, chat, unused)


LAYOUT = FunctionLayout(
    "transformers' instructblip",
    lambda folder: can_read(folder, "instructblip"),
    read_instructblip,
    list_export_reasons,
    forbid_export,
    load_runner,
    supports_video=False,
)
