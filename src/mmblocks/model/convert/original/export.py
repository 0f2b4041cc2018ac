"""A model of ours in LLaVA's own layout, as LLaVA-NeXT and SGLang load it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import encoders, poolings
from mmblocks.encoders.clip import CLIP
from mmblocks.encoders.siglip import SigLIP
from mmblocks.model.convert import keys
from mmblocks.model.convert.export_text import PADDING_SIDE, finish_tokenizer, write_generation_config
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original.config import FAMILIES, NEWLINES, POOLINGS, RESAMPLED, TEXT_KEYS
from mmblocks.model.convert.original.towers import KINDS, SIZES, OriginalTower, list_known_towers
from mmblocks.model.convert.text import refuse_conversion
from mmblocks.model.convert.transformers.export import write_weights
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.convert.weights import LM_HEAD
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.none import NoPooling
from mmblocks.storage import replace_folder
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.frames import Frames
from mmblocks.tokenizers.highres import HighRes
from mmblocks.tokenizers.one_view import OneView

log = logging.getLogger(__name__)

ARCHITECTURES = {family: name for name, family in FAMILIES.items()}
MERGES = {"unpad": "spatial_unpad", "spatial": "spatial", "maxpool2x2": "spatial_maxpool2x2", "flat": "flat"}
POSITIONS = {ours: theirs for theirs, ours in NEWLINES.items()}
NAMES = ("lm.model.embed_tokens.", "lm.model.layers.", "lm.model.norm.", "lm.lm_head.")


def export_original(
    model: OneVision, folder: Path | str, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
) -> Path:
    """Write a folder in LLaVA's own layout, whole or not at all.

    dtype: type of the stored weights, by default the type they have. A tower that is none of the published ones is
    written beside the model too, in a folder that `mm_vision_tower` names relative to the checkpoint; other programs
    look for that path from where they are started. Raises `ConfigError` listing everything that cannot be expressed.
    """
    refuse_conversion(Path(folder), reasons_against_export(model))
    _say_what_is_left_out(model)
    with replace_folder(Path(folder)) as fresh:
        config = make_original_config(model, dtype)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_weights(_tensors(model, dtype), fresh, max_shard_size)
        if config["mm_vision_tower"] in KINDS:
            _write_tower(model, fresh / config["mm_vision_tower"], dtype)
        _write_tokenizer(model, fresh)
    return Path(folder)


def _say_what_is_left_out(model: OneVision) -> None:
    video: Any = model.router.video
    if isinstance(video, Frames) and (video.max_frames, video.fps) != (32, None):
        log.info("the layout does not say how frames are chosen: max_frames=%s, fps=%s", video.max_frames, video.fps)
    if getattr(model.router.image, "rounding", "original") != "original":
        log.info("unpadding: LLaVA truncates where transformers rounds; 1 in some 20 000 image sizes differs")


# What the layout cannot say -----------------------------------------------------------------------------------------


def reasons_against_export(model: OneVision) -> list[str]:
    """Everything about a model that LLaVA's own layout cannot express; empty when it can be exported."""
    reasons = []
    if type(model.encoder) not in (CLIP, SigLIP):
        reasons.append(f"encoder: {type(model.encoder).__name__}; LLaVA's layout is written with 'clip' and 'siglip'.")
    if original_projectors.find_projector_type(model.projector) is None:
        known = f"only {original_projectors.KNOWN_TYPES} can be expressed (a pooler has stride=2)"
        reasons.append(f"projector: {type(model.projector).__name__}; {known}.")
    return [
        *reasons,
        *_image_reasons(model),
        *_several_reasons(model),
        *_list_video_reasons(model),
        *_list_text_reasons(model),
    ]


def _image_reasons(model: OneVision) -> Iterator[str]:
    image: Any = model.router.image
    if not isinstance(image, OneView | AnyRes | HighRes):
        yield f"tokenizer.image: {type(image).__name__}; only 'square', 'pad', 'anyres' and 'highres' can be expressed."
    if isinstance(image, AnyRes) and image.merge == "flat" and not image.base:
        yield "tokenizer.image: merge='flat' always has its base view; use base=true."


def _several_reasons(model: OneVision) -> Iterator[str]:
    image, several = model.router.image, model.router.multi_image
    newline = "newline" in image.learned_tokens
    if several != image and not (isinstance(several, OneView) and several.newline == newline):
        yield (
            "tokenizer.multi_image: several images are prepared as one alone (the same tokenizer as image), or as one "
            f"view each ('pad' or 'square' with newline={str(newline).lower()})."
        )


def _list_video_reasons(model: OneVision) -> Iterator[str]:
    video: Any = model.router.video
    if not isinstance(video, Frames):
        yield f"tokenizer.video: {type(video).__name__}; only 'frames' can be expressed."
        return
    if isinstance(video.pooling, NoPooling):
        if video.newline != "none":
            yield f"tokenizer.video: newline={video.newline!r} needs a pooling of frames; only 'none' goes without."
    elif _has_feature_pooling(video) and _find_pooling_mode(video.pooling) not in RESAMPLED:
        yield f"pooling: {video.pooling}; before the projector only {' and '.join(RESAMPLED)} can be expressed."
    elif _find_pooling_mode(video.pooling) is None:
        yield f"pooling: {video.pooling}; only {', '.join(POOLINGS)} and none can be expressed."
    if video.newline != "none" and "newline" not in model.router.image.learned_tokens:
        yield f"tokenizer.video: newline={video.newline!r}, but the tokenizer of images has no newline to share."


def _has_feature_pooling(video: Any) -> bool:
    return getattr(video, "pool_at", None) == "features"


def _find_pooling_mode(pooling: Any) -> str | None:
    return next((mode for mode in POOLINGS if type(pooling) is poolings[mode].builder), None)


def _list_text_reasons(model: OneVision) -> Iterator[str]:
    config = model.backbone.config
    if config.model_type not in ARCHITECTURES:
        yield f"backbone: a {config.model_type!r} model; LLaVA's layout has {', '.join(ARCHITECTURES)}."
    foreign = [name for name in model.backbone.state_dict() if not name.startswith(NAMES)]
    if foreign:
        yield f"backbone: it names its tensors {foreign[0]!r}, unlike Qwen or Llama."
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "qwen2" and rope.get("rope_type", "default") != "default":
        yield f"backbone: rope_type={rope['rope_type']!r}; LLaVA's Qwen drops any scaling of positions."


# config.json --------------------------------------------------------------------------------------------------------


def make_original_config(model: OneVision, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """LLaVA's config.json for a model that nothing speaks against."""
    kind = dtype or next(model.parameters()).dtype
    return {
        "architectures": [ARCHITECTURES[model.backbone.config.model_type]],
        "model_type": "llava_mistral" if model.backbone.config.model_type == "mistral" else "llava",
        **_tower_keys(model),
        **_make_image_entries(model),
        **_make_video_entries(model),
        "mm_projector_type": original_projectors.find_projector_type(model.projector),
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_token_index": model.backbone.placeholder_id,
        "tokenizer_model_max_length": model.backbone.max_tokens,
        "tokenizer_padding_side": PADDING_SIDE,
        **_make_text_entries(model),
        "torch_dtype": str(kind).removeprefix("torch."),
    }


def _tower_keys(model: OneVision) -> dict[str, Any]:
    settings = encoders.resolve_settings(model.spec.encoder)
    return {
        "mm_vision_tower": _tower_name(model),
        "mm_hidden_size": model.encoder.dim,
        "mm_vision_select_layer": _layer(model),
        "mm_vision_select_feature": settings.get("select", "patch"),
        "unfreeze_mm_vision_tower": True,  # or LLaVA's code takes the published tower instead of the stored one
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    }


def _describe_tower(model: OneVision) -> OriginalTower:
    """The tower whose blocks the encoder runs. SigLIP is described with one block more, which LLaVA deletes."""
    settings = encoders.resolve_settings(model.spec.encoder)
    kind = "clip" if isinstance(model.encoder, CLIP) else "siglip"
    known = {k: settings[k] for k in (*SIZES, "checkpoint")}
    if kind == "siglip":
        known["depth"] = _blocks(model) + 1
    return OriginalTower(kind, **known, hidden_act=settings.get("hidden_act", "gelu_pytorch_tanh"))


def _tower_name(model: OneVision) -> str:
    """The published tower that has these sizes, else the name of the folder beside the weights."""
    tower = _describe_tower(model)
    return str(tower.checkpoint) if list_known_towers().get(str(tower.checkpoint)) == tower else tower.kind


def _layer(model: OneVision) -> int:
    return -2 if isinstance(model.encoder, SigLIP) else encoders.resolve_settings(model.spec.encoder)["layer"]


def _blocks(model: OneVision) -> int:
    return len(model.encoder.vision_model.encoder.layers)


def _make_image_entries(model: OneVision) -> dict[str, Any]:
    image: Any = model.router.image
    if isinstance(image, OneView):
        aspect = "pad" if image.framing == "padded" else "square"
        return {"image_aspect_ratio": aspect, "mm_patch_merge_type": "spatial_unpad" if image.newline else "flat"}
    if isinstance(image, HighRes):
        return {
            "image_aspect_ratio": "highres",
            "mm_patch_merge_type": "flat",
            "image_grid_pinpoints": str(image.side_px),
        }
    return {
        "image_aspect_ratio": f"anyres_max_{image.max_tiles}" if image.max_tiles is not None else "anyres",
        "mm_patch_merge_type": MERGES[image.merge] + ("" if image.base else "_nobase"),
        "image_grid_pinpoints": [[canvas.width, canvas.height] for canvas in image.canvases],
    }


def _make_video_entries(model: OneVision) -> dict[str, Any]:
    video: Any = model.router.video
    mode = _find_pooling_mode(video.pooling)
    told = {"force_sample": video.force, "add_time_instruction": video.tell_times is not None}
    if mode is None:
        return {"mm_resampler_type": None, **told}
    resampler = {"mm_resampler_type": None}
    if _has_feature_pooling(video):
        resampler = {"mm_resampler_type": "spatial_pool", "mm_spatial_pool_out_channels": model.encoder.dim}
    return {
        **resampler,
        **told,
        "mm_spatial_pool_mode": mode,
        "mm_spatial_pool_stride": video.pooling.stride,
        "mm_newline_position": POSITIONS[video.newline],
    }


def _make_text_entries(model: OneVision) -> dict[str, Any]:
    config = model.backbone.config.to_dict()
    rope = dict(config.get("rope_parameters") or {})
    theta, kind = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
    scaling = {} if kind == "default" else {"rope_scaling": {"type": kind, "rope_type": kind, **rope}}
    return {**{k: config[k] for k in TEXT_KEYS if k in config}, "rope_theta": theta, **scaling}


# Weights and text ---------------------------------------------------------------------------------------------------


def _tensors(model: OneVision, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state = model.state_dict()
    if model.backbone.config.tie_word_embeddings:
        state.pop(LM_HEAD, None)
    table = keys.make_original_table(
        original_projectors.make_name_table(str(original_projectors.find_projector_type(model.projector)))
    )
    return {keys.to_theirs(name, table): _stored(tensor, dtype) for name, tensor in state.items()}


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()


def _write_tower(model: OneVision, folder: Path, dtype: torch.dtype | None) -> None:
    """The tower as a checkpoint of transformers. Blocks after the layer that is read let everything pass unchanged."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    tower = _describe_tower(model)
    config = copy.deepcopy(model.encoder.vision_model.config)
    config.num_hidden_layers = tower.depth
    assert isinstance(config, CLIPVisionConfig | SiglipVisionConfig)
    whole: Any = CLIPVisionModel(config) if isinstance(config, CLIPVisionConfig) else SiglipVisionModel(config)
    neutral = {name: torch.zeros_like(tensor) for name, tensor in whole.state_dict().items()}
    whole.load_state_dict({**neutral, **model.encoder.vision_model.state_dict()})
    whole.to(dtype or next(model.encoder.parameters()).dtype).save_pretrained(folder)


def _write_tokenizer(model: OneVision, folder: Path) -> None:
    if model.backbone.tokenizer_source is None:
        log.info("no text tokenizer is known; LLaVA's code will ask for one in %s", folder)
        return
    tokenizer = copy.deepcopy(model.backbone.text_tokenizer)
    if (template := to_jinja(model.template)) is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    finish_tokenizer(model, folder)
    write_generation_config(model, folder)
