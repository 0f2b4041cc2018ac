"""transformers' `llava_onevision` as a model of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from mmblocks.errors import CheckpointError
from mmblocks.model.convert import keys
from mmblocks.model.convert.export_hf import export_hf
from mmblocks.model.convert.text import assembled, backbone_settings, refuse, template_name, tokenizer_of
from mmblocks.model.convert.weights import Matched, read_json, read_weights
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec

__all__ = ["export_hf", "import_hf", "import_hf_with_report", "spec_of_hf"]

GREY = [0.5, 0.5, 0.5]
BICUBIC = 3


def import_hf(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> OneVision:
    """Read a local `llava_onevision` checkpoint in any layout that transformers has written, or the hub's.

    Raises `ConfigError` listing what its config asks for that we do not compute in the same way, `CheckpointError`
    listing every tensor that is missing, extra or of another shape.
    """
    return import_hf_with_report(folder, dtype=dtype)[0]


def import_hf_with_report(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> tuple[OneVision, Matched]:
    """`import_hf`, and how each tensor was accounted for."""
    folder = Path(folder)
    config = read_config(folder)
    spec = spec_of_hf(config, folder)
    return assembled(spec, config.text_config, read_weights(folder), keys.LLAVA_ONEVISION, dtype, folder)


def read_config(folder: Path) -> Any:
    """The checkpoint's config as transformers understands it; its text config says whether embeddings are tied."""
    from transformers import LlavaOnevisionConfig

    raw = read_json(folder / "config.json")
    if raw.get("model_type") != "llava_onevision":
        raise CheckpointError(f"{folder} holds a {raw.get('model_type')!r} model, not 'llava_onevision'.")
    try:
        config: Any = LlavaOnevisionConfig.from_dict(raw)
    except (TypeError, ValueError) as cause:
        raise CheckpointError(f"{folder}/config.json is not a config of llava_onevision: {cause}") from cause
    config.text_config.tie_word_embeddings = config.tie_word_embeddings or config.text_config.tie_word_embeddings
    return config


def spec_of_hf(config: Any, folder: Path) -> ModelSpec:
    """The composition that computes what the checkpoint's config describes. Raises `ConfigError` listing every reason
    why there is none.
    """
    refuse(folder, [*_reasons_against(config), *_processor_reasons(folder, config)])
    vision, tokenizer = config.vision_config, tokenizer_of(folder)
    max_tiles = re.fullmatch(r"anyres_max_(\d+)", config.vision_aspect_ratio)
    assert max_tiles, "refused above"
    return ModelSpec.of(
        {
            "encoder": {
                "name": "siglip",
                "image_px": vision.image_size,
                "patch_px": vision.patch_size,
                "dim": vision.hidden_size,
                "depth": vision.num_hidden_layers,
                "heads": vision.num_attention_heads,
                "mlp_dim": vision.intermediate_size,
                "layer": config.vision_feature_layer,
            },
            "projector": {"name": "mlp", "depth": 2},
            "pooling": {"name": "bilinear", "stride": 2},
            "tokenizer": {
                "image": {
                    "name": "anyres",
                    "pinpoints": [[width, height] for height, width in config.image_grid_pinpoints],
                    "max_tiles": int(max_tiles[1]),
                    "rounding": "transformers",
                },
                "multi_image": {"name": "pad", "newline": True},
                "video": {"name": "frames", "newline": "one_token"},
            },
            "backbone": backbone_settings(config.text_config, folder, tokenizer, config.image_token_index),
            "template": template_name(folder, tokenizer),
        }
    )


def _reasons_against(config: Any) -> list[str]:
    vision = config.vision_config
    needs = [
        ("vision_config.model_type", vision.model_type, "siglip_vision_model"),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
        ("multimodal_projector_bias", config.multimodal_projector_bias, True),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, "full"),
        ("vision_config.hidden_act", vision.hidden_act, "gelu_pytorch_tanh"),
        ("vision_config.layer_norm_eps", getattr(vision, "layer_norm_eps", None), 1e-6),
        ("vision_config.num_channels", vision.num_channels, 3),
    ]
    reasons = [f"{key} is {value!r}; only {wanted!r} is read." for key, value, wanted in needs if value != wanted]
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        reasons.append(f"vision_feature_layer is {layer!r}; only a single layer is read.")
    if not re.fullmatch(r"anyres_max_[1-9]\d*", config.vision_aspect_ratio):
        reasons.append(f"vision_aspect_ratio is {config.vision_aspect_ratio!r}; only 'anyres_max_N' is read.")
    return reasons


def _processor_reasons(folder: Path, config: Any) -> list[str]:
    """What the checkpoint's own image processor does that ours does not. A folder without one is taken as standard."""
    image = _image_processor(folder)
    side = config.vision_config.image_size
    needs = [
        ("image_mean", GREY),
        ("image_std", GREY),
        ("resample", BICUBIC),
        ("size", {"height": side, "width": side}),
        ("image_grid_pinpoints", [list(pair) for pair in config.image_grid_pinpoints]),
    ]
    return [
        f"its image processor has {key}={image[key]!r}; only {wanted!r} is read."
        for key, wanted in needs
        if image.get(key, wanted) != wanted
    ]


def _image_processor(folder: Path) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            image = found.get("image_processor", found)
            if "image_mean" in image:
                return image
    return {}
