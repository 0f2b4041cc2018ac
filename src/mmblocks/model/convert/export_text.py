"""What an export says of text beside its weights: tokenizer, ends of answers, rotary settings.

Written so that transformers 4.57 reads it too, which knows the tokenizers' classes and the rotary settings by older names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmblocks.json_files import read_object
from mmblocks.model.generation.decoding import StopSequences

PADDING_SIDE = "left"
"""Answers of a batch begin at its last column, so shorter prompts are padded in front."""
CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast", "PythonBackend": "PreTrainedTokenizer"}
"""transformers 5's names of the general tokenizers and those of transformers 4, which both know."""
READING_ENTRIES = ("backend", "is_local", "local_files_only")
"""Entries that say how a tokenizer was read, and nothing about it."""
REPETITION = ("repetition_penalty", "no_repeat_ngram_size")


def finish_tokenizer(model: Any, folder: Path) -> None:
    """Complete the tokenizer_config.json that transformers 5 wrote into a folder.

    A tokenizer without a token to pad with gets one, and one that begins texts with no BOS says so: transformers 4 reads
    every tokenizer of llava_next_video as a Llama's, which begins them with one.
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
    if named := config.pop("model_specific_special_tokens", None):
        config["extra_special_tokens"] = named
    _write_json(path, config)


def finish_config(folder: Path) -> None:
    """Say the rotary settings of the text model in the words of transformers 4 too."""
    path = folder / "config.json"
    config = read_object(path)
    config["text_config"] |= to_older_rope(config["text_config"].get("rope_parameters") or {})
    _write_json(path, config)


def to_older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as transformers 4 has them: a base, and a scaling where there is one.

    Of settings for each kind of layer, the base and scaling are those of full attention, and the base of the windows has
    a name of its own (Gemma 3).
    """
    if isinstance(rope.get("full_attention"), Mapping):
        local = rope.get("sliding_attention") or {}
        base = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        return {**to_older_rope(rope["full_attention"]), **base}
    if "rope_theta" not in rope:
        return {}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    found = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaled = scaling.get("rope_type", "default") != "default"
    return {**found, "rope_scaling": scaling} if scaled else found


def write_generation_config(model: Any, folder: Path) -> None:
    """What ends an answer: the ends of the chat template and those that the checkpoint's own generation knows.

    What this says of repetition, which our own generation follows, is kept.
    """
    from transformers import GenerationConfig

    tokenizer, own = model.backbone.text_tokenizer, getattr(model.backbone.lm, "generation_config", None)
    repetition = {key: value for key in REPETITION if (value := getattr(own, key, None)) is not None}
    ids = {
        "eos_token_id": list(StopSequences.from_model(model).tokens) or None,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": _find_padding_id(model),
    }
    GenerationConfig(**ids, **repetition).save_pretrained(folder)


def _find_padding_id(model: Any) -> int | None:
    """The text tokenizer's own, else what ends an answer."""
    own = model.backbone.text_tokenizer.pad_token_id
    return own if own is not None else next(iter(StopSequences.from_model(model).tokens), None)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
