"""A model of ours in LLaVA's own layout, as LLaVA-NeXT and SGLang load it."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch

from mmblocks.components import Pooling, encoders, poolings
from mmblocks.encoders.clip import CLIP
from mmblocks.encoders.siglip import SigLIP
from mmblocks.model.convert import keys
from mmblocks.model.convert.export_text import PADDING_SIDE, finish_tokenizer, write_generation_config
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original.config import FAMILIES, NEWLINES, POOLINGS, RESAMPLED, TEXT_KEYS
from mmblocks.model.convert.original.towers import KINDS, SIZES, OriginalTower, list_known_towers
from mmblocks.model.convert.text import refuse_conversion
from mmblocks.model.convert.transformers.export import collect_tensors, write_weights
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.onevision import OneVision
from mmblocks.model.quantized import require_no_quantized_layer
from mmblocks.poolings.none import NoPooling
from mmblocks.storage import replace_folder
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.fixed_side import HighRes
from mmblocks.tokenizers.frames import Frames
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
    resolve that path from their working directory. Raises `ConfigError` listing everything that cannot be expressed.
    """
    require_no_quantized_layer(model, "an export")
    refuse_conversion(Path(folder), reasons_against_export(model))
    video: Any = model.router.video
    if (video.max_frames, video.fps) != (32, None):
        log.info("the layout does not say how frames are chosen: max_frames=%s, fps=%s", video.max_frames, video.fps)
    if getattr(model.router.image, "rounding", "original") != "original":
        log.info("unpadding: LLaVA truncates where transformers rounds; 1 in some 20 000 image sizes differs")
    table = keys.make_original_table(
        original_projectors.make_name_table(str(original_projectors.find_projector_type(model.projector)))
    )
    with replace_folder(Path(folder)) as fresh:
        config = make_original_config(model, dtype)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_weights(collect_tensors(model, table, dtype), fresh, max_shard_size)
        if config["mm_vision_tower"] in KINDS:
            _write_tower(model, fresh / config["mm_vision_tower"], dtype)
        _write_tokenizer(model, fresh)
    return Path(folder)


# What the layout cannot say -----------------------------------------------------------------------------------------


def reasons_against_export(model: OneVision) -> list[str]:
    """Everything about a model that LLaVA's own layout cannot express; empty when it can be exported."""
    reasons = []
    if type(model.encoder) not in (CLIP, SigLIP):
        reasons.append(f"encoder: {type(model.encoder).__name__}; LLaVA's layout is written with 'clip' and 'siglip'.")
    if original_projectors.find_projector_type(model.projector) is None:
        known = f"only {original_projectors.KNOWN_TYPES} can be expressed (a pooler has stride=2)"
        reasons.append(f"projector: {type(model.projector).__name__}; {known}.")
    image: Any = model.router.image
    if not isinstance(image, OneView | AnyRes | HighRes):
        name = type(image).__name__
        reasons.append(f"tokenizer.image: {name}; only 'square', 'pad', 'anyres' and 'highres' can be expressed.")
    if isinstance(image, AnyRes) and image.merge == "flat" and not image.base:
        reasons.append("tokenizer.image: merge='flat' always has its base view; use base=true.")
    several, newline = model.router.multi_image, "newline" in image.learned_tokens
    if several != image and not (isinstance(several, OneView) and several.newline == newline):
        reasons.append(
            "tokenizer.multi_image: several images are prepared as one alone (the same tokenizer as image), or as one "
            f"view each ('pad' or 'square' with newline={str(newline).lower()})."
        )
    reasons += _list_video_reasons(model)
    config = model.backbone.config
    if config.model_type not in ARCHITECTURES:
        reasons.append(f"backbone: a {config.model_type!r} model; LLaVA's layout has {', '.join(ARCHITECTURES)}.")
    foreign = [name for name in model.backbone.state_dict() if not name.startswith(NAMES)]
    if foreign:
        reasons.append(f"backbone: it names its tensors {foreign[0]!r}, unlike Qwen or Llama.")
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "qwen2" and rope.get("rope_type", "default") != "default":
        reasons.append(f"backbone: rope_type={rope['rope_type']!r}; LLaVA's Qwen drops any scaling of positions.")
    return reasons


def _list_video_reasons(model: OneVision) -> list[str]:
    video: Any = model.router.video
    if not isinstance(video, Frames):
        return [f"tokenizer.video: {type(video).__name__}; only 'frames' can be expressed."]
    reasons, mode, newline = [], _find_pooling_mode(video.pooling), f"tokenizer.video: newline={video.newline!r}"
    if isinstance(video.pooling, NoPooling):
        if video.newline != "none":
            reasons.append(f"{newline} needs a pooling of frames; without one, only 'none' can be expressed.")
    elif video.pool_at == "features" and mode not in RESAMPLED:
        known = " and ".join(RESAMPLED)
        reasons.append(f"pooling: {video.pooling}; before the projector only {known} can be expressed.")
    elif mode is None:
        reasons.append(f"pooling: {video.pooling}; only {', '.join(POOLINGS)} and none can be expressed.")
    if video.newline != "none" and "newline" not in model.router.image.learned_tokens:
        reasons.append(f"{newline}, but the tokenizer of images has no newline to share.")
    return reasons


def _find_pooling_mode(pooling: Pooling) -> str | None:
    return next((mode for mode in POOLINGS if type(pooling) is poolings[mode].builder), None)


# config.json --------------------------------------------------------------------------------------------------------


def make_original_config(model: OneVision, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """LLaVA's config.json for a model without `reasons_against_export`."""
    kind, text = dtype or next(model.parameters()).dtype, model.backbone.config.to_dict()
    rope = dict(text.get("rope_parameters") or {})
    theta, rope_type = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
    scaling = {"rope_scaling": {"type": rope_type, "rope_type": rope_type, **rope}} if rope_type != "default" else {}
    settings, tower = encoders.resolve_settings(model.spec.encoder), _describe_tower(model)
    is_published = list_known_towers().get(str(tower.checkpoint)) == tower
    return {
        "architectures": [ARCHITECTURES[model.backbone.config.model_type]],
        "model_type": "llava_mistral" if model.backbone.config.model_type == "mistral" else "llava",
        "mm_vision_tower": str(tower.checkpoint) if is_published else tower.kind,  # else the folder beside the weights
        "mm_hidden_size": model.encoder.dim,
        "mm_vision_select_layer": -2 if tower.kind == "siglip" else settings["layer"],
        "mm_vision_select_feature": settings.get("select", "patch"),
        "unfreeze_mm_vision_tower": True,  # or LLaVA's code loads the published tower instead of the stored one
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        **_make_image_entries(model),
        **_make_video_entries(model),
        "mm_projector_type": original_projectors.find_projector_type(model.projector),
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_token_index": model.backbone.placeholder_id,
        "tokenizer_model_max_length": model.backbone.max_tokens,
        "tokenizer_padding_side": PADDING_SIDE,
        **{key: text[key] for key in TEXT_KEYS if key in text},
        "rope_theta": theta,
        **scaling,
        "torch_dtype": str(kind).removeprefix("torch."),
    }


def _describe_tower(model: OneVision) -> OriginalTower:
    """The tower whose blocks the encoder runs. SigLIP is described with one block more, which LLaVA deletes."""
    settings = encoders.resolve_settings(model.spec.encoder)
    kind = "clip" if isinstance(model.encoder, CLIP) else "siglip"
    known = {k: settings[k] for k in (*SIZES, "checkpoint")}
    if kind == "siglip":
        known["depth"] = len(model.encoder.vision_model.encoder.layers) + 1
    return OriginalTower(kind, **known, hidden_act=settings.get("hidden_act", "gelu_pytorch_tanh"))


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
    sampling = {"force_sample": video.force, "add_time_instruction": video.tell_times is not None}
    resampler: dict[str, Any] = {"mm_resampler_type": None}
    if mode is None:
        return {**resampler, **sampling}
    if video.pool_at == "features":
        resampler = {"mm_resampler_type": "spatial_pool", "mm_spatial_pool_out_channels": model.encoder.dim}
    return {
        **resampler,
        **sampling,
        "mm_spatial_pool_mode": mode,
        "mm_spatial_pool_stride": video.pooling.stride,
        "mm_newline_position": POSITIONS[video.newline],
    }


# Tower and text tokenizer -------------------------------------------------------------------------------------------


def _write_tower(model: OneVision, folder: Path, dtype: torch.dtype | None) -> None:
    """The tower as a checkpoint of transformers. Blocks after the layer that is read are the identity."""
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
        log.info("there is no text tokenizer; LLaVA's code will need one in %s", folder)
        return
    tokenizer = copy.deepcopy(model.backbone.text_tokenizer)
    if (template := to_jinja(model.template)) is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    finish_tokenizer(model, folder)
    write_generation_config(model, folder)
