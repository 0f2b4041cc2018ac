"""transformers' `llava` (LLaVA-1.5 and its kin): one view per image, every patch a token."""

from __future__ import annotations

from typing import Any

from mmblocks.model.convert.transformers.export import (
    make_colour_settings,
    make_crop_settings,
    make_processor_settings,
    make_squash_settings,
)
from mmblocks.model.convert.transformers.families import HFFamily, ImageSettings, list_side_reasons, make_hf_layout
from mmblocks.model.convert.transformers.tokens import make_frames_settings
from mmblocks.model.onevision import OneVision
from mmblocks.tokenizers.one_view import OneView


def _find_framing(config: Any, image: ImageSettings) -> str:
    """How an image meets the view: "padded", "cropped" or "squashed"; without a processor, as the tower's own does."""
    if image.get("do_pad"):
        return "padded"
    siglip = config.vision_config.model_type == "siglip_vision_model"
    if "size" not in image:
        return "squashed" if siglip else "cropped"
    squashed = isinstance(image["size"], dict) and {"height", "width"} <= {k for k, v in image["size"].items() if v}
    return "squashed" if squashed else "cropped"


def _list_image_reasons(config: Any, image: ImageSettings) -> list[str]:
    reasons = list_side_reasons(config, image)
    siglip = config.vision_config.model_type == "siglip_vision_model"
    if _find_framing(config, image) == ("cropped" if siglip else "squashed"):
        does, only = ("cuts", "resized whole") if siglip else ("resizes whole", "cut to their middle")
        reasons.append(f"its image processor {does} images; beside this tower they are read padded or {only}.")
    return reasons


def _make_tokenizer_settings(config: Any, image: ImageSettings) -> dict[str, Any]:
    name = "pad" if _find_framing(config, image) == "padded" else "square"
    vision = config.vision_config
    cells = (vision.image_size // vision.patch_size) ** 2 + 1
    video = make_frames_settings(config, cells)
    return {"pooling": "none", "tokenizer": {"image": name, "multi_image": name, "video": video}}


def _list_export_reasons(model: OneVision) -> list[str]:
    router: Any = model.router
    reasons = [
        f"tokenizer.{scenario}: only one view without rows of its own can be expressed ('pad' or 'square')."
        for scenario in ("image", "multi_image")
        if not _is_one_view(getattr(router, scenario))
    ]
    if not reasons and router.image.framing != router.multi_image.framing:
        reasons.append("tokenizer.multi_image: it frames images otherwise than tokenizer.image; llava has one way.")
    return reasons


def _is_one_view(tokenizer: Any) -> bool:
    return isinstance(tokenizer, OneView) and not tokenizer.newline


def _settings(model: OneVision) -> dict[str, Any]:
    return {"image_seq_length": model.encoder.grid.area}


def _make_processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    framing = model.router.image.framing  # type: ignore[attr-defined]
    image: Any
    if framing == "padded":
        image = LlavaImageProcessorPil(**make_colour_settings(model), **make_crop_settings(model), do_pad=True)
    elif framing == "cropped":
        image = CLIPImageProcessorPil(**make_colour_settings(model), **make_crop_settings(model))
    else:
        image = SiglipImageProcessorPil(**make_colour_settings(model), **make_squash_settings(model), resample=3)
    return LlavaProcessor(image, tokenizer, **make_processor_settings(model))


FAMILY = HFFamily(
    model_type="llava",
    visual_tokens=("<image>",),
    newline=False,
    towers=("clip_vision_model", "siglip_vision_model"),
    list_image_reasons=_list_image_reasons,
    list_token_reasons=lambda config: [],
    make_tokenizer_settings=_make_tokenizer_settings,
    list_export_reasons=_list_export_reasons,
    make_config_settings=_settings,
    make_processor=_make_processor,
)
LAYOUT = make_hf_layout(FAMILY)
