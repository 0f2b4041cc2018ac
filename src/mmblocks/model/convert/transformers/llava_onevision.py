"""transformers' `llava_onevision`: one image tiled, several as one view each, videos pooled after the projector."""

from __future__ import annotations

import re
from typing import Any, cast

from mmblocks.model.convert.transformers.export import export_hf, make_colour_settings, make_squash_settings
from mmblocks.model.convert.transformers.families import (
    HFFamily,
    ImageSettings,
    import_hf,
    import_hf_with_report,
    make_hf_layout,
)
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.convert.transformers.tokens import (
    list_pinpoints,
    list_tiling_reasons,
    list_video_reasons,
    log_rounding,
    make_anyres_settings,
)
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.bilinear import BilinearPooling
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.frames import Frames
from mmblocks.tokenizers.one_view import OneView

__all__ = ["FAMILY", "LAYOUT", "export_hf", "import_hf", "import_hf_with_report"]


def _list_token_reasons(config: Any) -> list[str]:
    reasons = []
    if config.vision_config.model_type != "siglip_vision_model":
        reasons.append("llava_onevision is read with vision_config.model_type 'siglip_vision_model' only.")
    if not re.fullmatch(r"anyres_max_[1-9]\d*", config.vision_aspect_ratio):
        reasons.append(f"vision_aspect_ratio is {config.vision_aspect_ratio!r}; only 'anyres_max_N' is read.")
    return reasons


def _make_tokenizer_settings(config: Any, image: ImageSettings) -> dict[str, Any]:
    max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return {
        "pooling": {"name": "bilinear", "stride": 2},
        "tokenizer": {
            "image": make_anyres_settings(config, max_tiles=max_tiles),
            "multi_image": {"name": "pad", "newline": True},
            "video": {"name": "frames", "newline": "one_token"},
        },
    }


def _list_export_reasons(model: OneVision) -> list[str]:
    router: Any = model.router
    image, several, video = router.image, router.multi_image, router.video
    reasons = []
    if not (isinstance(image, AnyRes) and image.merge == "unpad" and image.base and image.max_tiles is not None):
        reasons.append("tokenizer.image: only 'anyres' with a base view, merge='unpad' and max_tiles can be expressed.")
    else:
        log_rounding(image)
    if not (isinstance(several, OneView) and several.framing == "padded" and several.newline):
        reasons.append("tokenizer.multi_image: only 'pad' with newline=true can be expressed.")
    if not (isinstance(video, Frames) and video.newline == "one_token" and video.squash and video.pool_at == "tokens"):
        reasons.append("tokenizer.video: only 'frames' with newline='one_token' and squashed frames can be expressed.")
        return reasons
    if video.pooling != BilinearPooling(stride=2):
        reasons.append(f"pooling: {video.pooling}; only 'bilinear' with stride=2 can be expressed.")
    return reasons + list_video_reasons(video)


def _settings(model: OneVision) -> dict[str, Any]:
    return {"image_grid_pinpoints": list_pinpoints(model), "vision_aspect_ratio": _format_aspect_ratio(model)}


def _format_aspect_ratio(model: OneVision) -> str:
    return f"anyres_max_{cast(AnyRes, model.router.image).max_tiles}"


def _make_processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    pixels = make_colour_settings(model) | make_squash_settings(model)
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**pixels, image_grid_pinpoints=list_pinpoints(model)),
        tokenizer,
        LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=model.encoder.grid.area,
        vision_feature_select_strategy="full",
        chat_template=to_jinja(model.template),
        vision_aspect_ratio=_format_aspect_ratio(model),
    )


FAMILY = HFFamily(
    model_type="llava_onevision",
    visual_tokens=("<image>", "<video>"),
    newline=True,
    towers=("siglip_vision_model",),
    list_image_reasons=list_tiling_reasons,
    list_token_reasons=_list_token_reasons,
    make_tokenizer_settings=_make_tokenizer_settings,
    list_export_reasons=_list_export_reasons,
    make_config_settings=_settings,
    make_processor=_make_processor,
)
LAYOUT = make_hf_layout(FAMILY)
