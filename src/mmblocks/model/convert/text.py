"""Common steps of every import: text tokenizer, language model settings, and the model from its tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmblocks.backbones.text_tokenizer import read_text_tokenizer
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.json_files import read_object
from mmblocks.model.build import build_from_spec
from mmblocks.model.checks import limits
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.convert import read_raw_config
from mmblocks.model.convert.chat import TEMPLATES_BY_END, ChatChoice
from mmblocks.model.convert.keys import NameTable
from mmblocks.model.convert.weights import MatchedTensors, load_matched, match_tensors
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.tensors import leave_weights_empty

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size")
"""Generation settings of a checkpoint that are read: end tokens and repetition penalties."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def refuse_conversion(where: Path, reasons: list[str]) -> None:
    """Raise one `ConfigError` that lists all reasons, if there are any."""
    if reasons:
        raise ConfigError(f"{where} cannot be converted:\n" + "\n".join(f"  - {reason}" for reason in reasons))


def read_checkpoint_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The text tokenizer in a checkpoint folder, with its processor's chat template; None where there is none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return read_text_tokenizer(str(folder))
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{folder}: its text tokenizer cannot be read ({cause}).") from cause


def list_tokenizer_reasons(
    tokenizer: PreTrainedTokenizerBase | None, visual_ids: Mapping[str, int], vocab_size: int, chat: ChatChoice
) -> list[str]:
    """What a checkpoint's text tokenizer lacks: the visual tokens, embeddings for them, the end of a turn."""
    reasons = [
        f"the config puts {token} at id {number}, beyond the {vocab_size} token embeddings."
        for token, number in visual_ids.items()
        if not 0 <= number < vocab_size
    ]
    if tokenizer is None:
        return reasons
    vocabulary = tokenizer.get_vocab()
    for token, number in visual_ids.items():
        if vocabulary.get(token, number) != number:
            reasons.append(f"its text tokenizer has {token} at id {vocabulary[token]}, its config at {number}.")
    if chat.is_guess:
        ends = ", ".join(TEMPLATES_BY_END)
        reasons.append(
            f"its chat template is unknown ({chat.reason}), and its text tokenizer has none of the special tokens that end a "
            f"turn ({ends}); name one with --template."
        )
    return reasons


def read_generation_settings(folder: Path) -> dict[str, Any]:
    """The entries of a checkpoint's generation_config.json that are used; empty where there is none."""
    path = folder / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    return {key: settings[key] for key in GENERATION_KEYS if settings.get(key) is not None}


def read_end_tokens(folder: Path) -> tuple[int, ...]:
    """The ids that end an answer: the checkpoint's generation settings, else its text config."""
    text = read_raw_config(folder).get("text_config") or {}
    ids = read_generation_settings(folder).get("eos_token_id", text.get("eos_token_id"))
    return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)


def make_backbone_settings(
    config: PreTrainedConfig, folder: Path, tokenizer: PreTrainedTokenizerBase | None, placeholder_id: int
) -> dict[str, Any]:
    """A transformers text config as settings of our `causal_lm`; entries without a setting stay in the config."""
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None)
    return {
        "name": "causal_lm",
        "family": config.model_type,
        "text_tokenizer": str(folder.resolve()) if tokenizer is not None else None,
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": getattr(config, "num_key_value_heads", None),
        "mlp_dim": getattr(config, "intermediate_size", None),
        "max_tokens": config.max_position_embeddings,
        "rope_theta": float(rope["rope_theta"]) if rope.get("rope_type") == "default" else None,
        "norm_eps": getattr(config, "rms_norm_eps", None),
        "tie_embeddings": bool(config.tie_word_embeddings),
        "sliding_window": (window or 0) if hasattr(config, "sliding_window") else None,
        "placeholder_id": placeholder_id,
    }


def require_parts_fit(spec: ModelSpec) -> None:
    """Raise one `ConfigError` that lists every fault of an imported composition.

    Visuals too large for a sequence are the checkpoint's own limit, and only a warning.
    """
    built = dry_build(spec, offline=False)
    too_long = []
    if built.encoder is not None and built.backbone is not None:
        too_long = limits.find_media_faults(built.tokenizers, built.encoder.view_px, built.backbone.max_tokens)
    for fault in too_long:
        log.warning("%s", fault)
    DryBuild([fault for fault in built.faults if fault not in too_long]).require_no_faults()


def build_from_tensors(
    spec: ModelSpec,
    text_config: PreTrainedConfig,
    stored: Mapping[str, Tensor],
    layouts: Mapping[str, NameTable],
    dtype: torch.dtype,
    where: Path,
    chat: ChatChoice,
    unused: Mapping[str, str] | None = None,
) -> tuple[OneVision, MatchedTensors]:
    """The model of a spec with a checkpoint's tensors, all of them or none.

    chat: the spec's chat template and why it was chosen. unused: tensors that may be left over besides `keys.UNUSED`, as
    patterns of our names, with reasons.
    """
    require_parts_fit(spec)
    with leave_weights_empty():
        model = build_from_spec(spec, backbone_on_meta=True)
    model.backbone.set_config(text_config, dtype)  # it may have entries that our settings lack
    matched = match_tensors(model, stored, layouts, where, unused)
    load_matched(model, matched, dtype, where)
    model.backbone.lm.generation_config.update(**read_generation_settings(where))
    counts = len(matched.tensors), len(matched.unused)
    log.info("%s: layout %s, %d tensors read, %d not needed", where, matched.layout, *counts)
    return model.eval(), replace(matched, chat=str(chat))
