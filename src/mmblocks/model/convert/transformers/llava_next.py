"""transformers' `llava_next` (LLaVA-NeXT): every picture tiled, unpadded, a learned newline after each line."""

from __future__ import annotations

from typing import Any

from mmblocks.model.convert.transformers.export import colours, cut_to, processor_settings
from mmblocks.model.convert.transformers.families import Family, ImageSettings, hf_door
from mmblocks.model.convert.transformers.tokens import (
    anyres,
    frames_without_rows,
    has_cls,
    is_anyres,
    pinpoints_of,
    tell_rounding,
    tiled_reasons,
)
from mmblocks.model.onevision import OneVision


def _tokens(config: Any, image: ImageSettings) -> dict[str, Any]:
    vision = config.vision_config
    video = frames_without_rows(config, (vision.image_size // vision.patch_size) ** 2)
    return {
        "pooling": "none",
        "tokenizer": {"image": anyres(config), "multi_image": anyres(config), "video": video},
    }


def export_reasons(model: OneVision) -> list[str]:
    """What LLaVA-NeXT cannot express of pictures: all of them are tiled in one way."""
    router: Any = model.router
    reasons = [
        f"tokenizer.{scenario}: only 'anyres' with a base view, merge='unpad' and max_tiles=null can be expressed."
        for scenario in ("image", "multi_image")
        if not is_anyres(getattr(router, scenario))
    ]
    if not reasons and router.image.canvases != router.multi_image.canvases:
        reasons.append("tokenizer.multi_image: its pinpoints are not those of tokenizer.image; only one list is kept.")
    if not reasons:
        tell_rounding(router.image)
    return reasons


def settings(model: OneVision) -> dict[str, Any]:
    """What LlavaNextConfig says beside the parts."""
    return {"image_grid_pinpoints": pinpoints_of(model), "image_seq_length": model.encoder.grid.area}


def image_processor(model: OneVision) -> Any:
    """transformers' processor with the model's colours, view and canvases."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(**colours(model), **cut_to(model), image_grid_pinpoints=pinpoints_of(model))


def _processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaNextProcessor

    return LlavaNextProcessor(image_processor(model), tokenizer, **processor_settings(model))


FAMILY = Family(
    model_type="llava_next",
    visual_tokens=("<image>",),
    newline=True,
    towers=("clip_vision_model", "siglip_vision_model"),
    image_reasons=tiled_reasons,
    token_reasons=has_cls,
    tokens=_tokens,
    export_reasons=export_reasons,
    settings=settings,
    processor=_processor,
)
DOOR = hf_door(FAMILY)
