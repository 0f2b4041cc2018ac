"""LLaVA-OneVision's own checkpoints (https://github.com/LLaVA-VL/LLaVA-NeXT) as a model of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert import keys
from mmblocks.model.convert.text import assembled, backbone_settings, refuse, template_name, tokenizer_of
from mmblocks.model.convert.weights import Matched, read_json, read_weights
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec

FAMILIES = {"LlavaQwenForCausalLM": "qwen2", "LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
NEWLINES = {"grid": "grid", "frame": "frame", "one_token": "one_token", "no_token": "none"}  # theirs -> ours
POOLINGS = {"bilinear": "bilinear", "average": "average", "max": "max"}
TOWERS = {  # mm_vision_tower -> (image_px, heads), which no tensor tells
    "google/siglip-so400m-patch14-384": (384, 16),
    "google/siglip-so400m-patch14-224": (224, 16),
    "google/siglip-base-patch16-224": (224, 12),
    "google/siglip-base-patch16-384": (384, 12),
    "google/siglip-large-patch16-384": (384, 16),
}
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
VISION = "model.vision_tower.vision_tower.vision_model."


def import_original(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> OneVision:
    """Read a local checkpoint in the layout that LLaVA-OneVision was released in, with a SigLIP tower.

    What its config leaves open is taken from the tensors; the tower's picture size and heads, which neither tells, from
    the name in `mm_vision_tower`, or from its config.json where that is a local folder. Raises `ConfigError` listing
    what we do not compute in the same way, `CheckpointError` listing every tensor that is missing, extra or reshaped.
    """
    return import_original_with_report(folder, dtype=dtype)[0]


def import_original_with_report(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> tuple[OneVision, Matched]:
    """`import_original`, and how each tensor was accounted for."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    refuse(folder, _reasons_against(config))
    stored, text = read_weights(folder), text_config(config)
    spec = _spec(config, text, read_tower(config, stored, folder), folder)
    layouts = {"LLaVA-NeXT": keys.original(_projector_depth(config))}
    return assembled(spec, text, stored, layouts, dtype, folder)


def _reasons_against(config: Mapping[str, Any]) -> list[str]:
    needs: list[tuple[str, Any, Any, tuple[Any, ...]]] = [
        ("mm_patch_merge_type", config.get("mm_patch_merge_type", "flat"), "spatial_unpad", ("spatial_unpad",)),
        ("mm_resampler_type", config.get("mm_resampler_type"), None, (None, "identity")),
        ("mm_vision_select_feature", config.get("mm_vision_select_feature", "patch"), "patch", ("patch",)),
        ("add_faster_video", config.get("add_faster_video", False), False, (False, None)),
        ("mm_use_im_start_end", config.get("mm_use_im_start_end", False), False, (False, None)),
        ("mm_spatial_pool_mode", config.get("mm_spatial_pool_mode", "bilinear"), sorted(POOLINGS), tuple(POOLINGS)),
        ("mm_newline_position", config.get("mm_newline_position", "one_token"), sorted(NEWLINES), tuple(NEWLINES)),
    ]
    reasons = [
        f"{key} is {value!r}; only {wanted!r} is read." for key, value, wanted, fine in needs if value not in fine
    ]
    if not re.fullmatch(r"mlp[1-9]\d*x_gelu", str(config.get("mm_projector_type"))):
        reasons.append(f"mm_projector_type is {config.get('mm_projector_type')!r}; only 'mlpNx_gelu' is read.")
    if not re.fullmatch(r"anyres(_max_[1-9]\d*)?", str(config.get("image_aspect_ratio"))):
        reasons.append(
            f"image_aspect_ratio is {config.get('image_aspect_ratio')!r}; only 'anyres' and 'anyres_max_N' are read."
        )
    if _family(config) is None:
        reasons.append(f"architectures are {config.get('architectures')}; only {', '.join(FAMILIES)} are read.")
    return reasons


def _family(config: Mapping[str, Any]) -> str | None:
    return next((FAMILIES[name] for name in config.get("architectures") or [] if name in FAMILIES), None)


def _projector_depth(config: Mapping[str, Any]) -> int:
    return int(re.sub(r"\D", "", config["mm_projector_type"]))


def text_config(config: Mapping[str, Any]) -> Any:
    """The language model's part of a LLaVA config. Rope scaling is not read: LLaVA's Qwen config drops it too."""
    from transformers import AutoConfig

    theta = float(config.get("rope_theta", 10000.0))
    settings = {key: config[key] for key in TEXT_KEYS if config.get(key) is not None}
    if not config.get("use_sliding_window", True):
        settings["sliding_window"] = None
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    return AutoConfig.for_model(_family(config) or "", **settings, **rope)


# The vision tower ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tower:
    """Sizes of the stored SigLIP tower; `blocks` are those in the file."""

    image_px: int
    patch_px: int
    dim: int
    blocks: int
    heads: int
    mlp_dim: int


def read_tower(config: Mapping[str, Any], stored: Mapping[str, Tensor], folder: Path) -> Tower:
    """The tower's sizes from its tensors, checked against what its name or folder says."""
    image_px, heads = _named_facts(str(config.get("mm_vision_tower")), folder)
    needed = [f"{VISION}embeddings.{n}.weight" for n in ("patch_embedding", "position_embedding")]
    needed.append(f"{VISION}encoder.layers.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in stored]:
        raise CheckpointError(f"{folder} has no SigLIP tower; missing:\n  " + "\n  ".join(missing))
    patch, positions, fc1 = (stored[name] for name in needed)
    cells = math.isqrt(positions.shape[0])
    if cells * cells != positions.shape[0] or image_px // patch.shape[-1] != cells:
        raise CheckpointError(
            f"{folder}: the tower has {positions.shape[0]} positions of {patch.shape[-1]} pixels, which does not fit "
            f"pictures of {image_px} pixels ({config.get('mm_vision_tower')})."
        )
    layers = {
        int(found[1]) for name in stored if (found := re.match(re.escape(VISION) + r"encoder\.layers\.(\d+)\.", name))
    }
    return Tower(image_px, patch.shape[-1], patch.shape[0], max(layers) + 1, heads, fc1.shape[0])


def _named_facts(tower: str, folder: Path) -> tuple[int, int]:
    """(image_px, heads) of a tower, by its hub name or from its local folder, which may lie inside the checkpoint."""
    if tower in TOWERS:
        return TOWERS[tower]
    local = next((place for place in (folder / tower, Path(tower)) if (place / "config.json").is_file()), None)
    if local is None:
        raise ConfigError(
            f"{folder}: mm_vision_tower is {tower!r}, neither a local folder with a config.json nor one of "
            f"{', '.join(TOWERS)}; put the tower's folder there or write its path."
        )
    found = read_json(local / "config.json")
    vision = found.get("vision_config", found)
    if missing := [key for key in ("image_size", "num_attention_heads") if key not in vision]:
        raise CheckpointError(f"{local}/config.json does not say {' and '.join(missing)}.")
    return vision["image_size"], vision["num_attention_heads"]


# The composition ----------------------------------------------------------------------------------------------------


def _spec(config: Mapping[str, Any], text: Any, tower: Tower, folder: Path) -> ModelSpec:
    tokenizer = tokenizer_of(folder)
    max_tiles = re.search(r"\d+", config["image_aspect_ratio"])
    return ModelSpec.of(
        {
            "encoder": {
                "name": "siglip",
                "image_px": tower.image_px,
                "patch_px": tower.patch_px,
                "dim": tower.dim,
                # The file lacks the last block, which LLaVA-OneVision deletes (siglip_encoder.py), as layer -2 does here.
                "depth": tower.blocks + 1,
                "heads": tower.heads,
                "mlp_dim": tower.mlp_dim,
                "layer": -2,
            },
            "projector": {"name": "mlp", "depth": _projector_depth(config)},
            "pooling": {
                "name": POOLINGS[config.get("mm_spatial_pool_mode", "bilinear")],
                "stride": config.get("mm_spatial_pool_stride", 2),
            },
            "tokenizer": {
                "image": {
                    "name": "anyres",
                    "pinpoints": config.get("image_grid_pinpoints", "(1x1),...,(6x6)"),
                    "max_tiles": int(max_tiles[0]) if max_tiles else None,
                    "rounding": "original",
                },
                "multi_image": {"name": "pad", "newline": True},
                "video": {"name": "frames", "newline": NEWLINES[config.get("mm_newline_position", "one_token")]},
            },
            "backbone": backbone_settings(text, folder, tokenizer, _placeholder(config, text)),
            "template": template_name(folder, tokenizer),
        }
    )


def _placeholder(config: Mapping[str, Any], text: Any) -> int:
    """LLaVA marks pictures by -200; any id of the vocabulary may stand in their rows here, best the released 151646."""
    named = config.get("image_token_index")
    return named if isinstance(named, int) and 0 <= named < text.vocab_size else 0
