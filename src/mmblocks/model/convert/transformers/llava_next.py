"""transformers' `llava_next` (LLaVA-NeXT): every image tiled, unpadded, a learned newline after each line."""

from __future__ import annotations

from typing import Any

from mmblocks.model.convert.transformers.export import make_colour_settings, make_crop_settings, make_processor_settings
from mmblocks.model.convert.transformers.families import HFFamily, ImageSettings, make_hf_layout
from mmblocks.model.convert.transformers.tokens import (
    is_anyres,
    list_cls_reasons,
    list_pinpoints,
    list_tiling_reasons,
    log_rounding,
    make_anyres_settings,
    make_frames_settings,
)
from mmblocks.model.onevision import OneVision


def _make_tokenizer_settings(config: Any, image: ImageSettings) -> dict[str, Any]:
    vision = config.vision_config
    video = make_frames_settings(config, (vision.image_size // vision.patch_size) ** 2)
    return {
        "pooling": "none",
        "tokenizer": {
            "image": make_anyres_settings(config),
            "multi_image": make_anyres_settings(config),
            "video": video,
        },
    }


def list_export_reasons(model: OneVision) -> list[str]:
    """What LLaVA-NeXT cannot express of images: all of them are tiled in one way."""
    router: Any = model.router
    reasons = [
        f"tokenizer.{scenario}: only 'anyres' with a base view, merge='unpad' and max_tiles=null can be expressed."
        for scenario in ("image", "multi_image")
        if not is_anyres(getattr(router, scenario))
    ]
    if not reasons and router.image.canvases != router.multi_image.canvases:
        reasons.append("tokenizer.multi_image: its pinpoints are not those of tokenizer.image; only one list is kept.")
    if not reasons:
        log_rounding(router.image)
    return reasons


def make_config_settings(model: OneVision) -> dict[str, Any]:
    """What LlavaNextConfig says beside the parts."""
    return {"image_grid_pinpoints": list_pinpoints(model), "image_seq_length": model.encoder.grid.area}


def make_image_processor(model: OneVision) -> Any:
    """transformers' processor with the model's colours, view and canvases."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(
        **make_colour_settings(model), **make_crop_settings(model), image_grid_pinpoints=list_pinpoints(model)
    )


def _make_processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaNextProcessor

    return LlavaNextProcessor(make_image_processor(model), tokenizer, **make_processor_settings(model))


FAMILY = HFFamily(
    model_type="llava_next",
    visual_tokens=("<image>",),
    newline=True,
    towers=("clip_vision_model", "siglip_vision_model"),
    list_image_reasons=list_tiling_reasons,
    list_token_reasons=list_cls_reasons,
    make_tokenizer_settings=_make_tokenizer_settings,
    list_export_reasons=list_export_reasons,
    make_config_settings=make_config_settings,
    make_processor=_make_processor,
)
LAYOUT = make_hf_layout(FAMILY)
