"""Text files of an export: text tokenizer, end tokens, rotary settings.

Written so that transformers 4.57 reads them too, which has older names for tokenizer classes and rotary settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.json_files import read_object
from mmblocks.model.generation.stopping import StopSequences

if TYPE_CHECKING:
    from mmblocks.model.onevision import OneVision

PADDING_SIDE = "left"
"""Answers of a batch begin at its last column, so shorter prompts are padded on the left."""
CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast", "PythonBackend": "PreTrainedTokenizer"}
"""transformers 5's names of the general tokenizers -> transformers 4's, which both versions accept."""
READING_ENTRIES = ("backend", "is_local", "local_files_only")
"""Entries that describe how a tokenizer was read, not the tokenizer."""
REPETITION = ("repetition_penalty", "no_repeat_ngram_size")


def finish_tokenizer(model: OneVision, folder: Path) -> None:
    """Complete the tokenizer_config.json that transformers 5 wrote into a folder.

    A tokenizer without a padding token gets one, and one without BOS gets `add_bos_token: false`: transformers 4 reads
    every tokenizer of llava_next_video as a Llama's, which adds one.
    """
    tokenizer = model.backbone.text_tokenizer
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in read_object(path).items() if key not in READING_ENTRIES}
    config["padding_side"] = PADDING_SIDE
    config["tokenizer_class"] = CLASSES.get(config["tokenizer_class"], config["tokenizer_class"])
    if config.get("pad_token") is None and (padding := _find_padding_id(model)) is not None:
        config["pad_token"] = tokenizer.convert_ids_to_tokens(padding)
    if tokenizer.bos_token is None:
        config["add_bos_token"] = False
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if specific := config.pop("model_specific_special_tokens", None):
        config["extra_special_tokens"] = specific
    _write_json(path, config)


def finish_config(folder: Path) -> None:
    """Add the rotary settings of the text model under transformers 4's names."""
    path = folder / "config.json"
    config = read_object(path)
    config["text_config"] |= to_older_rope(config["text_config"].get("rope_parameters") or {})
    _write_json(path, config)


def to_older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as transformers 4 has them: a base, and a scaling where there is one.

    Of settings by kind of layer, base and scaling are those of full attention; the base of sliding windows has a name of
    its own (Gemma 3).
    """
    if isinstance(rope.get("full_attention"), Mapping):
        local = rope.get("sliding_attention") or {}
        base = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        return {**to_older_rope(rope["full_attention"]), **base}
    if "rope_theta" not in rope:
        return {}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    base = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    is_scaled = scaling.get("rope_type", "default") != "default"
    return {**base, "rope_scaling": scaling} if is_scaled else base


def write_generation_config(model: OneVision, folder: Path) -> None:
    """Write generation_config.json: end tokens of the chat template and of the checkpoint, and repetition penalties."""
    from transformers import GenerationConfig

    tokenizer, own = model.backbone.text_tokenizer, getattr(model.backbone.lm, "generation_config", None)
    repetition = {key: value for key in REPETITION if (value := getattr(own, key, None)) is not None}
    ids = {
        "eos_token_id": list(StopSequences.from_model(model).tokens) or None,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": _find_padding_id(model),
    }
    GenerationConfig(**ids, **repetition).save_pretrained(folder)


def _find_padding_id(model: OneVision) -> int | None:
    """The text tokenizer's padding token, else the first token that ends an answer."""
    own = model.backbone.text_tokenizer.pad_token_id
    return own if own is not None else next(iter(StopSequences.from_model(model).tokens), None)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
