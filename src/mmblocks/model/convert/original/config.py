"""LLaVA's own config.json as a composition of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.model.convert.chat import ChatChoice
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original.towers import OriginalTower
from mmblocks.model.convert.text import make_backbone_settings
from mmblocks.model.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

FAMILIES = {"LlavaQwenForCausalLM": "qwen2", "LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
NEWLINES = {"grid": "grid", "frame": "frame", "one_token": "one_token", "no_token": "none"}  # theirs -> ours
POOLINGS = ("bilinear", "average", "max")
RESAMPLED = ("average", "max")
"""Modes of the resampler 'spatial_pool' that have no weights."""
MERGE = re.compile(r"flat|spatial(_unpad|_maxpool2x2)?(_nobase)?")
ASPECT = re.compile(r"square|pad|highres|anyres(_max_[1-9]\d*)?")
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


# What is refused ----------------------------------------------------------------------------------------------------


def reasons_against(config: Mapping[str, Any]) -> list[str]:
    """Everything in a config that we do not compute in the same way."""
    off: tuple[Any, ...] = (False, None)
    needs: list[tuple[str, Any, Any, tuple[Any, ...]]] = [
        ("add_faster_video", config.get("add_faster_video"), False, off),
        ("mm_use_im_start_end", config.get("mm_use_im_start_end"), False, off),
        ("mm_newline_position", config.get("mm_newline_position", "one_token"), [*NEWLINES], tuple(NEWLINES)),
        ("mm_spatial_pool_mode", config.get("mm_spatial_pool_mode", "bilinear"), [*POOLINGS], POOLINGS),
        ("mm_vision_select_feature", _read_select_feature(config), ["patch", "cls_patch"], ("patch", "cls_patch")),
    ]
    reasons = [
        f"{key} is {value!r}; only {wanted!r} is read." for key, value, wanted, fine in needs if value not in fine
    ]
    if original_projectors.make_projector_settings(str(config.get("mm_projector_type"))) is None:
        reasons.append(
            f"mm_projector_type is {config.get('mm_projector_type')!r}; only {original_projectors.KNOWN_TYPES} are read."
        )
    kind, mode = config.get("mm_resampler_type"), config.get("mm_spatial_pool_mode")
    if kind not in (None, "identity") and not (kind == "spatial_pool" and mode in RESAMPLED):
        known = f"None, 'identity' and 'spatial_pool' in the modes {' and '.join(map(repr, RESAMPLED))} are read"
        reasons.append(f"mm_resampler_type is {kind!r} (mm_spatial_pool_mode {mode!r}); only {known}.")
    reasons += _list_image_reasons(config)
    if _find_family(config) is None:
        reasons.append(f"architectures are {config.get('architectures')}; only {', '.join(FAMILIES)} are read.")
    return reasons


def _list_image_reasons(config: Mapping[str, Any]) -> list[str]:
    aspect, merge = _read_aspect_ratio(config), _read_merge_type(config)
    reasons = []
    if not MERGE.fullmatch(merge):
        known = (
            "'flat', 'spatial', 'spatial_unpad' and 'spatial_maxpool2x2', each 'spatial' one with or without '_nobase'"
        )
        reasons.append(f"mm_patch_merge_type is {merge!r}; only {known} are read.")
    if not ASPECT.fullmatch(aspect):
        known = "'square', 'pad', 'anyres', 'anyres_max_N' and 'highres'"
        reasons.append(f"image_aspect_ratio is {aspect!r}; only {known} are read.")
    if aspect.startswith(("anyres", "highres")) and not config.get("image_grid_pinpoints"):
        reasons.append(f"image_aspect_ratio is {aspect!r}, but image_grid_pinpoints names no canvas.")
    if aspect == "highres" and merge != "flat":
        reasons.append(f"image_aspect_ratio is 'highres' with mm_patch_merge_type {merge!r}; only 'flat' is read.")
    return reasons


def _find_family(config: Mapping[str, Any]) -> str | None:
    return next((FAMILIES[name] for name in config.get("architectures") or [] if name in FAMILIES), None)


def _read_select_feature(config: Mapping[str, Any]) -> str:
    return config.get("mm_vision_select_feature") or "patch"


def _read_merge_type(config: Mapping[str, Any]) -> str:
    return config.get("mm_patch_merge_type") or "flat"


def _read_aspect_ratio(config: Mapping[str, Any]) -> str:
    """Without this entry, LLaVA 1.5's code uses the encoder's own processor."""
    return config.get("image_aspect_ratio") or "square"


# The language model -------------------------------------------------------------------------------------------------


def make_text_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The language model's part of a LLaVA config. Rope scaling is dropped for Qwen, as LLaVA's code drops it."""
    from transformers import AutoConfig

    family = _find_family(config) or ""
    settings = {key: config[key] for key in TEXT_KEYS if config.get(key) is not None}
    if not config.get("use_sliding_window", True) or config.get("sliding_window", 0) is None:
        settings["sliding_window"] = None
    rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))}
    if family != "qwen2":
        scaling = config.get("rope_scaling") or {}
        rope |= {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
    return AutoConfig.for_model(family, **settings, rope_parameters=rope)


# The composition ----------------------------------------------------------------------------------------------------


def make_spec(
    config: Mapping[str, Any],
    text: PreTrainedConfig,
    tower: OriginalTower,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    chat: ChatChoice,
) -> ModelSpec:
    """The composition that computes what a config without `reasons_against` describes.

    No LLaVA config has the preparation of several images or the number of frames. Several images are prepared one by
    one as in LLaVA-NeXT 1.6 with its CLIP, and as one padded view each as in the training of LLaVA-OneVision; as many
    frames are taken as a sequence holds, up to 32.
    """
    # LLaVA's SigLIP tower deletes its last block, whatever layer the config names (siglip_encoder.py).
    layer = -2 if tower.kind == "siglip" else config.get("mm_vision_select_layer", -2)
    # LLaVA stands -200 for images; here any id of the vocabulary may stand for them, best the released 151646.
    placeholder = config.get("image_token_index")
    if not isinstance(placeholder, int) or not 0 <= placeholder < text.vocab_size:
        placeholder = 0
    pooling = make_pooling_settings(config)
    side = -(-(tower.image_px // tower.patch_px) // pooling.get("stride", 1))
    max_frames = max(1, min(32, (text.max_position_embeddings - 64) // (side * (side + 1))))
    return ModelSpec.from_dict(
        {
            "encoder": tower.make_encoder_settings(layer, _read_select_feature(config)),
            "projector": original_projectors.make_projector_settings(config["mm_projector_type"]),
            "pooling": pooling,
            "tokenizer": {
                "image": make_image_settings(config),
                "multi_image": make_multi_image_settings(config, tower.kind),
                "video": make_video_settings(config, max_frames),
            },
            "backbone": make_backbone_settings(text, folder, tokenizer, placeholder),
            "template": chat.spec,
        }
    )


def make_image_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The visual tokenizer of a conversation's only image."""
    aspect, merge = _read_aspect_ratio(config), _read_merge_type(config)
    if aspect in ("square", "pad"):
        return {"name": aspect, "newline": "unpad" in merge}
    if aspect == "highres":
        return {"name": "highres", "side_px": max(map(int, re.findall(r"\d+", str(config["image_grid_pinpoints"]))))}
    kind = next((kind for kind in ("maxpool2x2", "unpad", "spatial") if kind in merge), "flat")
    budget = re.search(r"\d+", aspect)
    return {
        "name": "anyres",
        "pinpoints": config["image_grid_pinpoints"],
        "max_tiles": int(budget[0]) if budget and kind == "unpad" else None,  # only the unpadded map has a budget
        "merge": kind,
        "base": "nobase" not in merge,
        "rounding": "original",
    }


def make_multi_image_settings(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The visual tokenizer of several images in a conversation."""
    if _read_aspect_ratio(config) in ("square", "pad") or (tower == "clip" and _read_aspect_ratio(config) == "anyres"):
        return make_image_settings(config)
    return {"name": "pad", "newline": "unpad" in _read_merge_type(config)}


def make_pooling_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The pooling of frames. Without video settings in the config, frames are treated as images."""
    if not _has_video_settings(config):
        return {"name": "none"}
    return {"name": config.get("mm_spatial_pool_mode", "bilinear"), "stride": config.get("mm_spatial_pool_stride") or 2}


def make_video_settings(config: Mapping[str, Any], max_frames: int) -> dict[str, Any]:
    """The visual tokenizer of videos. The resampler 'spatial_pool' pools frames before the projector, as LLaVA-NeXT-Video
    was trained (LLaVA-NeXT's present code no longer calls it); without it they are pooled after.

    Without a newline position, LLaVA's code puts one newline at the end, where images have newlines too.
    """
    has_resampler = config.get("mm_resampler_type") == "spatial_pool"
    newline = NEWLINES[config.get("mm_newline_position", "one_token")]
    if "mm_newline_position" not in config and (has_resampler or not _has_video_settings(config)):
        newline = "none"
    if newline == "one_token" and "unpad" not in _read_merge_type(config):
        newline = "none"
    video: dict[str, Any] = {"name": "frames", "max_frames": max_frames, "newline": newline}
    if has_resampler:
        video["pool_at"] = "features"
    if config.get("force_sample"):
        video["force"] = True
    if config.get("add_time_instruction"):
        video["tell_times"] = "seconds"
    return video


def _has_video_settings(config: Mapping[str, Any]) -> bool:
    return "mm_spatial_pool_mode" in config or "mm_newline_position" in config
