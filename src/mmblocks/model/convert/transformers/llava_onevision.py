"""transformers' `llava_onevision`: one picture tiled, several as one view each, clips pooled after the projector."""

from __future__ import annotations

import re
from typing import Any, cast

from mmblocks.model.convert.transformers.export import colours, export_hf, squashed_to
from mmblocks.model.convert.transformers.families import (
    Family,
    ImageSettings,
    hf_door,
    import_hf,
    import_hf_with_report,
)
from mmblocks.model.convert.transformers.jinja import jinja_of
from mmblocks.model.convert.transformers.tokens import anyres, clip_reasons, pinpoints_of, tell_rounding, tiled_reasons
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.bilinear import BilinearPooling
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.frames import Frames
from mmblocks.tokenizers.one_view import OneView

__all__ = ["DOOR", "FAMILY", "export_hf", "import_hf", "import_hf_with_report"]


def _token_reasons(config: Any) -> list[str]:
    reasons = []
    if config.vision_config.model_type != "siglip_vision_model":
        reasons.append("llava_onevision is read with vision_config.model_type 'siglip_vision_model' only.")
    if not re.fullmatch(r"anyres_max_[1-9]\d*", config.vision_aspect_ratio):
        reasons.append(f"vision_aspect_ratio is {config.vision_aspect_ratio!r}; only 'anyres_max_N' is read.")
    return reasons


def _tokens(config: Any, image: ImageSettings) -> dict[str, Any]:
    max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return {
        "pooling": {"name": "bilinear", "stride": 2},
        "tokenizer": {
            "image": anyres(config, max_tiles=max_tiles),
            "multi_image": {"name": "pad", "newline": True},
            "video": {"name": "frames", "newline": "one_token"},
        },
    }


def _export_reasons(model: OneVision) -> list[str]:
    router: Any = model.router
    image, several, video = router.image, router.multi_image, router.video
    reasons = []
    if not (isinstance(image, AnyRes) and image.merge == "unpad" and image.base and image.max_tiles is not None):
        reasons.append("tokenizer.image: only 'anyres' with a base view, merge='unpad' and max_tiles can be expressed.")
    else:
        tell_rounding(image)
    if not (isinstance(several, OneView) and several.framing == "padded" and several.newline):
        reasons.append("tokenizer.multi_image: only 'pad' with newline=true can be expressed.")
    if not (isinstance(video, Frames) and video.newline == "one_token" and video.squash and video.pool_at == "tokens"):
        reasons.append("tokenizer.video: only 'frames' with newline='one_token' and squashed frames can be expressed.")
        return reasons
    if video.pooling != BilinearPooling(stride=2):
        reasons.append(f"pooling: {video.pooling}; only 'bilinear' with stride=2 can be expressed.")
    return reasons + clip_reasons(video)


def _settings(model: OneVision) -> dict[str, Any]:
    return {"image_grid_pinpoints": pinpoints_of(model), "vision_aspect_ratio": _aspect(model)}


def _aspect(model: OneVision) -> str:
    return f"anyres_max_{cast(AnyRes, model.router.image).max_tiles}"


def _processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    pixels = colours(model) | squashed_to(model)
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**pixels, image_grid_pinpoints=pinpoints_of(model)),
        tokenizer,
        LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=model.encoder.grid.area,
        vision_feature_select_strategy="full",
        chat_template=jinja_of(model.template),
        vision_aspect_ratio=_aspect(model),
    )


FAMILY = Family(
    model_type="llava_onevision",
    visual_tokens=("<image>", "<video>"),
    newline=True,
    towers=("siglip_vision_model",),
    image_reasons=tiled_reasons,
    token_reasons=_token_reasons,
    tokens=_tokens,
    export_reasons=_export_reasons,
    settings=_settings,
    processor=_processor,
)
DOOR = hf_door(FAMILY)
