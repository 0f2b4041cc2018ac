"""transformers' `llava` (LLaVA-1.5 and its kin): one view per image, every patch a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmblocks.model.convert.transformers.export import make_crop_settings, make_processor_settings, make_squash_settings
from mmblocks.model.convert.transformers.llava_family import LlavaFamily
from mmblocks.model.convert.transformers.reading import ImageSettings, list_side_reasons
from mmblocks.model.convert.transformers.tokens import make_frames_settings
from mmblocks.model.onevision import OneVision
from mmblocks.tokenizers.one_view import OneView

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin


class Llava(LlavaFamily):
    model_type = "llava"
    about = "transformers' llava"
    supports_video = False
    has_newline = False

    def list_image_reasons(self, config: PreTrainedConfig, image: ImageSettings) -> list[str]:
        reasons = list_side_reasons(config, image)
        siglip = config.vision_config.model_type == "siglip_vision_model"
        if _find_framing(config, image) == ("cropped" if siglip else "squashed"):
            does, only = ("crops", "resized whole") if siglip else ("resizes whole", "cropped to their middle")
            reasons.append(f"its image processor {does} images; with this tower they are read padded or {only}.")
        return reasons

    def make_tokenizer_settings(self, config: PreTrainedConfig, image: ImageSettings) -> dict[str, Any]:
        name = "pad" if _find_framing(config, image) == "padded" else "square"
        vision = config.vision_config
        video = make_frames_settings(config, (vision.image_size // vision.patch_size) ** 2 + 1)
        return {"pooling": "none", "tokenizer": {"image": name, "multi_image": name, "video": video}}

    def list_tokenizer_reasons(self, model: OneVision) -> list[str]:
        router: Any = model.router
        image, several = router.image, router.multi_image
        reasons = [
            f"tokenizer.{scenario}: only one view without learned tokens can be expressed ('pad' or 'square')."
            for scenario, tokenizer in (("image", image), ("multi_image", several))
            if not isinstance(tokenizer, OneView) or tokenizer.newline
        ]
        if not reasons and image.framing != several.framing:
            reasons.append(
                "tokenizer.multi_image: it frames images otherwise than tokenizer.image; llava frames all in one way."
            )
        return reasons

    def make_config_entries(self, model: OneVision) -> dict[str, Any]:
        return {"image_seq_length": model.encoder.grid.area}

    def make_processor(self, model: OneVision, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        from transformers import LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        framing = model.router.image.framing  # type: ignore[attr-defined]
        image: Any
        if framing == "padded":
            image = LlavaImageProcessorPil(**make_crop_settings(model), do_pad=True)
        elif framing == "cropped":
            image = CLIPImageProcessorPil(**make_crop_settings(model))
        else:
            image = SiglipImageProcessorPil(**make_squash_settings(model), resample=3)
        return LlavaProcessor(image, tokenizer, **make_processor_settings(model))


def _find_framing(config: PreTrainedConfig, image: ImageSettings) -> str:
    """How an image is fitted to the view: "padded", "cropped" or "squashed"; without a processor, by the tower's own."""
    if image.get("do_pad"):
        return "padded"
    if "size" not in image:
        return "squashed" if config.vision_config.model_type == "siglip_vision_model" else "cropped"
    squashed = isinstance(image["size"], dict) and {"height", "width"} <= {k for k, v in image["size"].items() if v}
    return "squashed" if squashed else "cropped"


LAYOUT = Llava()
