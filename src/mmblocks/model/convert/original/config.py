"""What LLaVA's own config.json asks for, as a composition of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmblocks.model.convert.chat import ChatChoice
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original.towers import Tower
from mmblocks.model.convert.text import backbone_settings
from mmblocks.model.spec import ModelSpec

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
    """Everything that a config asks for and we do not compute in the same way."""
    off: tuple[Any, ...] = (False, None)
    needs: list[tuple[str, Any, Any, tuple[Any, ...]]] = [
        ("add_faster_video", config.get("add_faster_video"), False, off),
        ("mm_use_im_start_end", config.get("mm_use_im_start_end"), False, off),
        ("mm_newline_position", config.get("mm_newline_position", "one_token"), [*NEWLINES], tuple(NEWLINES)),
        ("mm_spatial_pool_mode", config.get("mm_spatial_pool_mode", "bilinear"), [*POOLINGS], POOLINGS),
        ("mm_vision_select_feature", _select(config), ["patch", "cls_patch"], ("patch", "cls_patch")),
    ]
    reasons = [
        f"{key} is {value!r}; only {wanted!r} is read." for key, value, wanted, fine in needs if value not in fine
    ]
    if original_projectors.settings_of(str(config.get("mm_projector_type"))) is None:
        reasons.append(
            f"mm_projector_type is {config.get('mm_projector_type')!r}; only {original_projectors.KNOWN} are read."
        )
    return [*reasons, *_resampler_reasons(config), *_picture_reasons(config), *_text_reasons(config)]


def _resampler_reasons(config: Mapping[str, Any]) -> list[str]:
    kind, mode = config.get("mm_resampler_type"), config.get("mm_spatial_pool_mode")
    if kind in (None, "identity") or (kind == "spatial_pool" and mode in RESAMPLED):
        return []
    known = f"None, 'identity' and 'spatial_pool' in the modes {' and '.join(map(repr, RESAMPLED))} are read"
    return [f"mm_resampler_type is {kind!r} (mm_spatial_pool_mode {mode!r}); only {known}."]


def _picture_reasons(config: Mapping[str, Any]) -> list[str]:
    aspect, merge = _aspect(config), _merge(config)
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


def _text_reasons(config: Mapping[str, Any]) -> list[str]:
    if _family(config) is not None:
        return []
    return [f"architectures are {config.get('architectures')}; only {', '.join(FAMILIES)} are read."]


def _family(config: Mapping[str, Any]) -> str | None:
    return next((FAMILIES[name] for name in config.get("architectures") or [] if name in FAMILIES), None)


def _select(config: Mapping[str, Any]) -> str:
    return config.get("mm_vision_select_feature") or "patch"


def _merge(config: Mapping[str, Any]) -> str:
    return config.get("mm_patch_merge_type") or "flat"


def _aspect(config: Mapping[str, Any]) -> str:
    """LLaVA 1.5's code takes an absent ratio for the encoder's own processor."""
    return config.get("image_aspect_ratio") or "square"


# The language model -------------------------------------------------------------------------------------------------


def text_config(config: Mapping[str, Any]) -> Any:
    """The language model's part of a LLaVA config. Rope scaling is dropped for Qwen, as LLaVA's code drops it."""
    from transformers import AutoConfig

    family = _family(config) or ""
    settings = {key: config[key] for key in TEXT_KEYS if config.get(key) is not None}
    if not config.get("use_sliding_window", True) or config.get("sliding_window", 0) is None:
        settings["sliding_window"] = None
    rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))}
    if family != "qwen2":
        scaling = config.get("rope_scaling") or {}
        rope |= {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
    return AutoConfig.for_model(family, **settings, rope_parameters=rope)


def _placeholder(config: Mapping[str, Any], text: Any) -> int:
    """LLaVA marks pictures by -200; any id of the vocabulary may stand in their rows here, best the released 151646."""
    named = config.get("image_token_index")
    return named if isinstance(named, int) and 0 <= named < text.vocab_size else 0


# The composition ----------------------------------------------------------------------------------------------------


def spec_of(
    config: Mapping[str, Any], text: Any, tower: Tower, folder: Path, tokenizer: Any, chat: ChatChoice
) -> ModelSpec:
    """The composition that computes what a config describes that nothing speaks against.

    How several pictures and how many frames are shown stands in no LLaVA config. Several pictures are prepared one by
    one as LLaVA-NeXT 1.6 does with its CLIP, and as one padded view each as LLaVA-OneVision trains.
    """
    return ModelSpec.of(
        {
            "encoder": tower.settings(_layer(config, tower), _select(config)),
            "projector": original_projectors.settings_of(config["mm_projector_type"]),
            "pooling": pooling_settings(config),
            "tokenizer": {
                "image": image_settings(config),
                "multi_image": several_settings(config, tower.kind),
                "video": video_settings(config, _max_frames(config, text, tower)),
            },
            "backbone": backbone_settings(text, folder, tokenizer, _placeholder(config, text)),
            "template": chat.spec,
        }
    )


def _layer(config: Mapping[str, Any], tower: Tower) -> int:
    """LLaVA's SigLIP tower deletes its last block, whatever layer the config names (siglip_encoder.py)."""
    return -2 if tower.kind == "siglip" else config.get("mm_vision_select_layer", -2)


def image_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The visual tokenizer of a picture that stands alone."""
    aspect, merge = _aspect(config), _merge(config)
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


def several_settings(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The visual tokenizer of pictures that stand beside each other."""
    if _aspect(config) in ("square", "pad") or (tower == "clip" and _aspect(config) == "anyres"):
        return image_settings(config)
    return {"name": "pad", "newline": "unpad" in _merge(config)}


def pooling_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The pooling of frames. A config that knows of no clips shows them as pictures, frame by frame."""
    if not _knows_clips(config):
        return {"name": "none"}
    return {
        "name": config.get("mm_spatial_pool_mode", "bilinear"),
        "stride": config.get("mm_spatial_pool_stride") or 2,
    }


def video_settings(config: Mapping[str, Any], max_frames: int) -> dict[str, Any]:
    """The visual tokenizer of clips. The resampler 'spatial_pool' pools frames before the projector, as LLaVA-NeXT-Video
    was trained (LLaVA-NeXT's present code no longer calls it); without it they are pooled after.
    """
    resampled = config.get("mm_resampler_type") == "spatial_pool"
    video: dict[str, Any] = {"name": "frames", "max_frames": max_frames, "newline": _newline(config, resampled)}
    if resampled:
        video["pool_at"] = "features"
    if config.get("force_sample"):
        video["force"] = True
    if config.get("add_time_instruction"):
        video["tell_times"] = "seconds"
    return video


def _newline(config: Mapping[str, Any], resampled: bool) -> str:
    """LLaVA's code takes an absent position for one newline at the end, where pictures have newlines too."""
    if "mm_newline_position" not in config and (resampled or not _knows_clips(config)):
        return "none"
    newline = NEWLINES[config.get("mm_newline_position", "one_token")]
    return "none" if newline == "one_token" and "unpad" not in _merge(config) else newline


def _knows_clips(config: Mapping[str, Any]) -> bool:
    return "mm_spatial_pool_mode" in config or "mm_newline_position" in config


def _max_frames(config: Mapping[str, Any], text: Any, tower: Tower, most: int = 32) -> int:
    """How many frames a sequence holds beside some text: no config tells how many were shown."""
    side = tower.image_px // tower.patch_px
    side = -(-side // pooling_settings(config).get("stride", 1))
    return max(1, min(most, (text.max_position_embeddings - 64) // (side * (side + 1))))
