"""transformers' `llava_onevision`: one image tiled, several as one view each, videos pooled after the projector."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mmblocks.model.convert.transformers.export import make_squash_settings
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.convert.transformers.llava_family import LlavaFamily
from mmblocks.model.convert.transformers.reading import ImageSettings
from mmblocks.model.convert.transformers.tokens import (
    is_unpadded_anyres,
    list_pinpoints,
    list_video_reasons,
    log_rounding,
    make_anyres_settings,
)
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.bilinear import BilinearPooling
from mmblocks.tokenizers.frames import Frames
from mmblocks.tokenizers.one_view import OneView

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin


class LlavaOneVision(LlavaFamily):
    model_type = "llava_onevision"
    about = "transformers' llava_onevision"
    towers = ("siglip_vision_model",)

    def list_config_reasons(self, config: PreTrainedConfig) -> list[str]:
        reasons = []
        if config.vision_config.model_type != "siglip_vision_model":
            reasons.append("llava_onevision is read with vision_config.model_type 'siglip_vision_model' only.")
        if not re.fullmatch(r"anyres_max_[1-9]\d*", config.vision_aspect_ratio):
            reasons.append(f"vision_aspect_ratio is {config.vision_aspect_ratio!r}; only 'anyres_max_N' is read.")
        return reasons

    def make_tokenizer_settings(self, config: PreTrainedConfig, image: ImageSettings) -> dict[str, Any]:
        max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        return {
            "pooling": {"name": "bilinear", "stride": 2},
            "tokenizer": {
                "image": make_anyres_settings(config, max_tiles=max_tiles),
                "multi_image": {"name": "pad", "newline": True},
                "video": {"name": "frames", "newline": "one_token"},
            },
        }

    def list_tokenizer_reasons(self, model: OneVision) -> list[str]:
        router: Any = model.router
        image, several, video = router.image, router.multi_image, router.video
        reasons = []
        if not is_unpadded_anyres(image) or image.max_tiles is None:
            reasons.append(
                "tokenizer.image: only 'anyres' with a base view, merge='unpad' and max_tiles can be expressed."
            )
        else:
            log_rounding(image)
        if not (isinstance(several, OneView) and several.framing == "padded" and several.newline):
            reasons.append("tokenizer.multi_image: only 'pad' with newline=true can be expressed.")
        if not (
            isinstance(video, Frames) and video.newline == "one_token" and video.squash and video.pool_at == "tokens"
        ):
            return [
                *reasons,
                "tokenizer.video: only 'frames' with newline='one_token' and squashed frames can be expressed.",
            ]
        if video.pooling != BilinearPooling(stride=2):
            reasons.append(f"pooling: {video.pooling}; only 'bilinear' with stride=2 can be expressed.")
        return reasons + list_video_reasons(video)

    def make_config_entries(self, model: OneVision) -> dict[str, Any]:
        image: Any = model.router.image
        return {"image_grid_pinpoints": list_pinpoints(model), "vision_aspect_ratio": f"anyres_max_{image.max_tiles}"}

    def make_processor(self, model: OneVision, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        views, entries = make_squash_settings(model), self.make_config_entries(model)
        return LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessorPil(**views, image_grid_pinpoints=entries["image_grid_pinpoints"]),
            tokenizer,
            LlavaOnevisionVideoProcessor(**views),
            num_image_tokens=model.encoder.grid.area,
            vision_feature_select_strategy="full",
            chat_template=to_jinja(model.template),
            vision_aspect_ratio=entries["vision_aspect_ratio"],
        )


LAYOUT = LlavaOneVision()
