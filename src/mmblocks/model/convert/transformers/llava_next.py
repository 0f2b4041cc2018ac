"""transformers' `llava_next` (LLaVA-NeXT): every image tiled, unpadded, a learned newline after each line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmblocks.model.convert.transformers.export import make_crop_settings, make_processor_settings
from mmblocks.model.convert.transformers.llava_family import LlavaFamily
from mmblocks.model.convert.transformers.reading import ImageSettings
from mmblocks.model.convert.transformers.tokens import (
    is_unpadded_anyres,
    list_pinpoints,
    log_rounding,
    make_anyres_settings,
    make_frames_settings,
)
from mmblocks.model.onevision import OneVision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil


class LlavaNext(LlavaFamily):
    model_type = "llava_next"
    about = "transformers' llava_next"
    supports_video = False

    def list_config_reasons(self, config: PreTrainedConfig) -> list[str]:
        """Tiles cannot be joined with a CLS token among their patches, neither in transformers nor here."""
        clip = config.vision_config.model_type == "clip_vision_model"
        if not clip or config.vision_feature_select_strategy == "default":
            return []
        return [
            "vision_feature_select_strategy is 'full', which leaves CLIP's CLS token among the patches of a tile; "
            "only 'default' is read."
        ]

    def make_tokenizer_settings(self, config: PreTrainedConfig, image: ImageSettings) -> dict[str, Any]:
        images, vision = make_anyres_settings(config), config.vision_config
        video = make_frames_settings(config, (vision.image_size // vision.patch_size) ** 2)
        return {"pooling": "none", "tokenizer": {"image": images, "multi_image": images, "video": video}}

    def list_tokenizer_reasons(self, model: OneVision) -> list[str]:
        router: Any = model.router
        image, several = router.image, router.multi_image
        reasons = [
            f"tokenizer.{scenario}: only 'anyres' with a base view, merge='unpad' and max_tiles=null can be expressed."
            for scenario, tokenizer in (("image", image), ("multi_image", several))
            if not is_unpadded_anyres(tokenizer) or tokenizer.max_tiles
        ]
        if not reasons and image.canvases != several.canvases:
            reasons.append(
                "tokenizer.multi_image: its pinpoints are not those of tokenizer.image; only one list is kept."
            )
        if not reasons:
            log_rounding(image)
        return reasons

    def make_config_entries(self, model: OneVision) -> dict[str, Any]:
        return {"image_grid_pinpoints": list_pinpoints(model), "image_seq_length": model.encoder.grid.area}

    def make_image_processor(self, model: OneVision) -> LlavaNextImageProcessorPil:
        """transformers' image processor with the model's colours, view and canvases."""
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        return LlavaNextImageProcessorPil(**make_crop_settings(model), image_grid_pinpoints=list_pinpoints(model))

    def make_processor(self, model: OneVision, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        from transformers import LlavaNextProcessor

        return LlavaNextProcessor(self.make_image_processor(model), tokenizer, **make_processor_settings(model))


LAYOUT = LlavaNext()
