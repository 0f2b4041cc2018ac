"""transformers' `instructblip` inwards: BLIP-2 with a Q-Former that reads the question."""

from __future__ import annotations

from pathlib import Path

import torch

from mmblocks.model.convert import keys
from mmblocks.model.convert.door import Layout
from mmblocks.model.convert.text import assembled, tokenizer_of
from mmblocks.model.convert.transformers.blip2 import bare_chat, no_export, qformer_settings, refuse_export, spec_of
from mmblocks.model.convert.transformers.families import read_config, reads, run
from mmblocks.model.convert.weights import Matched, read_weights
from mmblocks.model.onevision import OneVision

TOKENIZER = "qformer_tokenizer"
"""Folder of the question's tokenizer inside a checkpoint."""


def read_instructblip(
    folder: Path, *, dtype: torch.dtype = torch.float32, template: str | None = None
) -> tuple[OneVision, Matched]:
    """Read a local InstructBLIP checkpoint of transformers whose language model is causal (Vicuna), and how each tensor
    was accounted for.
    """
    config = read_config(folder, "instructblip")
    qformer = config.qformer_config
    words = {"vocab_size": qformer.vocab_size, "max_text_tokens": qformer.max_position_embeddings}
    if (folder / TOKENIZER).is_dir():
        words["text_tokenizer"] = str((folder / TOKENIZER).resolve())
    tokenizer = tokenizer_of(folder)
    chat = bare_chat(folder, tokenizer, template)
    projector = {"name": "instruct_qformer", **qformer_settings(config), **words}
    spec = spec_of(config, folder, projector, tokenizer, chat)
    last = rf"projector\.body\.qformer\.encoder\.layer\.{qformer.num_hidden_layers - 1}\.(intermediate|output)\."
    unused = {last: "the words' last feed-forward, whose result nobody reads"}
    layouts = {"instructblip": keys.BLIP2}
    return assembled(spec, config.text_config, read_weights(folder), layouts, dtype, folder, chat, unused)


DOOR = Layout(
    "transformers' instructblip",
    lambda folder: reads(folder, "instructblip"),
    read_instructblip,
    refuse_export,
    no_export,
    run,
    clips=False,
)
