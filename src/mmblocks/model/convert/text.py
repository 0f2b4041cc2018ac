"""What imports share: the language model's settings, its text tokenizer and chat template, and the finished model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.backbones.text_tokenizer import read_text_tokenizer
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.json_files import read_object
from mmblocks.model.build import wire
from mmblocks.model.checks import limits
from mmblocks.model.checks.composition import Examination, examine
from mmblocks.model.convert import raw_config
from mmblocks.model.convert.chat import ENDS, ChatChoice
from mmblocks.model.convert.keys import Table
from mmblocks.model.convert.weights import Matched, load_matched, matched
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec

log = logging.getLogger(__name__)

GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size")
"""What of a checkpoint's generation settings is read here: ends of answers, and what holds of repetition."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def refuse(where: Path, reasons: list[str]) -> None:
    """Raise one `ConfigError` that lists all reasons, if there are any."""
    if reasons:
        raise ConfigError(f"{where} cannot be converted:\n" + "\n".join(f"  - {reason}" for reason in reasons))


def tokenizer_of(folder: Path) -> Any | None:
    """The text tokenizer in a checkpoint folder, with its processor's chat template; None where there is none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return read_text_tokenizer(str(folder))
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{folder}: its text tokenizer cannot be read ({cause}).") from cause


def tokenizer_reasons(
    tokenizer: Any | None, visual_ids: Mapping[str, int], vocab_size: int, chat: ChatChoice
) -> list[str]:
    """What a text tokenizer lacks for the checkpoint beside it: the visual tokens, room for them, the end of a turn."""
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
    if chat.unfounded:
        ends = ", ".join(ENDS)
        reasons.append(
            f"its chat template is unknown ({chat.why}), and its text tokenizer has none of the special tokens that end a "
            f"turn ({ends}); name one with --template."
        )
    return reasons


def stored_generation(folder: Path) -> dict[str, Any]:
    """A checkpoint's own generation settings, as far as they are read."""
    path = folder / "generation_config.json"
    found = read_object(path) if path.is_file() else {}
    return {key: found[key] for key in GENERATION if found.get(key) is not None}


def stored_ends(folder: Path) -> tuple[int, ...]:
    """The ids that end an answer by the checkpoint's generation settings, or else by its text model's."""
    text = raw_config(folder).get("text_config") or {}
    found = stored_generation(folder).get("eos_token_id", text.get("eos_token_id"))
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def backbone_settings(config: Any, folder: Path, tokenizer: Any | None, placeholder_id: int) -> dict[str, Any]:
    """A transformers text config as settings of our `causal_lm`. What they cannot say stays in the config itself."""
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

    That its largest visuals do not fit into a sequence is the checkpoint's own limit, and only told.
    """
    found = examine(spec, offline=False)
    too_long = []
    if found.encoder is not None and found.backbone is not None:
        too_long = limits.media_faults(found.tokenizers, found.encoder.view_px, found.backbone.max_tokens)
    for fault in too_long:
        log.warning("%s", fault)
    Examination([fault for fault in found.faults if fault not in too_long]).require()


def assembled(
    spec: ModelSpec,
    text_config: Any,
    stored: Mapping[str, Tensor],
    layouts: Mapping[str, Table],
    dtype: torch.dtype,
    where: Path,
    chat: ChatChoice,
    unused: Mapping[str, str] | None = None,
) -> tuple[OneVision, Matched]:
    """The model of a spec with a checkpoint's tensors, all of them or none.

    chat: the spec's chat template and why it was taken. unused: what may be left over beside what `keys.UNUSED` names, as patterns of our names and reasons.
    """
    require_parts_fit(spec)
    model = wire(spec, backbone_on_meta=True)
    with torch.device("meta"):  # a text config may say sizes that our settings cannot
        model.backbone.lm = type(model.backbone.lm)(text_config)
    found = matched(model, stored, layouts, where, unused)
    load_matched(model, found, text_config, dtype, where)
    model.backbone.lm.generation_config.update(**stored_generation(where))
    log.info(
        "%s: layout %s, %d tensors read, %d not needed", where, found.layout, len(found.tensors), len(found.unused)
    )
    return model.eval(), replace(found, chat=str(chat))
