"""What imports share: the language model's settings, its text tokenizer and chat template, and the finished model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import templates
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.build import wire
from mmblocks.model.check import require
from mmblocks.model.convert.jinja import jinja_of
from mmblocks.model.convert.keys import Table
from mmblocks.model.convert.weights import Matched, load_matched, matched
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec

log = logging.getLogger(__name__)

TEMPLATES = {"qwen_2": "<|im_end|>", "llava_llama_3": "<|eot_id|>", "vicuna_v1": "</s>"}
"""Chat templates by the token that ends their turns, in the order they are tried."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def refuse(where: Path, reasons: list[str]) -> None:
    """Raise one `ConfigError` that lists all reasons, if there are any."""
    if reasons:
        raise ConfigError(f"{where} cannot be converted:\n" + "\n".join(f"  - {reason}" for reason in reasons))


def tokenizer_of(folder: Path) -> Any | None:
    """The text tokenizer in a checkpoint folder, or None when it has none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{folder}: its text tokenizer cannot be read ({cause}).") from cause


def template_name(folder: Path, tokenizer: Any | None) -> str:
    """The chat template of a checkpoint: ours whose Jinja it holds, else by the token that ends a turn."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        for name in [*TEMPLATES, *templates]:
            if templates.reasons_against(name) == [] and jinja_of(templates.build(name)) == text:
                return name
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    found = next((name for name, stop in TEMPLATES.items() if stop in vocabulary), "qwen_2")
    log.info("chat template: %s (%s)", found, f"{TEMPLATES[found]} is in the vocabulary" if vocabulary else "default")
    return found


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
        "mlp_dim": config.intermediate_size,
        "max_tokens": config.max_position_embeddings,
        "rope_theta": float(rope["rope_theta"]) if rope.get("rope_type") == "default" else None,
        "norm_eps": getattr(config, "rms_norm_eps", None),
        "tie_embeddings": bool(config.tie_word_embeddings),
        "sliding_window": (window or 0) if hasattr(config, "sliding_window") else None,
        "placeholder_id": placeholder_id,
    }


def assembled(
    spec: ModelSpec,
    text_config: Any,
    stored: Mapping[str, Tensor],
    layouts: Mapping[str, Table],
    dtype: torch.dtype,
    where: Path,
) -> tuple[OneVision, Matched]:
    """The model of a spec with a checkpoint's tensors, all of them or none."""
    require(spec)
    model = wire(spec, backbone_on_meta=True)
    found = matched(model, stored, layouts, where)
    load_matched(model, found, text_config, dtype, where)
    log.info(
        "%s: layout %s, %d tensors read, %d not needed", where, found.layout, len(found.tensors), len(found.unused)
    )
    return model.eval(), found
