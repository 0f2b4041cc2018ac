"""transformers' `llava` (LLaVA-1.5 and its kin): one view per picture, every patch a token."""

from __future__ import annotations

from typing import Any

from mmblocks.model.convert.transformers.export import colours, cut_to, processor_settings, squashed_to
from mmblocks.model.convert.transformers.families import Family, ImageSettings, hf_door, side_reasons
from mmblocks.model.convert.transformers.tokens import frames_without_rows
from mmblocks.model.onevision import OneVision
from mmblocks.tokenizers.one_view import OneView


def _framing(config: Any, image: ImageSettings) -> str:
    """How a picture meets the view: "padded", "cropped" or "squashed"; without a processor, as the tower's own does."""
    if image.get("do_pad"):
        return "padded"
    siglip = config.vision_config.model_type == "siglip_vision_model"
    if "size" not in image:
        return "squashed" if siglip else "cropped"
    squashed = isinstance(image["size"], dict) and {"height", "width"} <= {k for k, v in image["size"].items() if v}
    return "squashed" if squashed else "cropped"


def _image_reasons(config: Any, image: ImageSettings) -> list[str]:
    reasons = side_reasons(config, image)
    siglip = config.vision_config.model_type == "siglip_vision_model"
    if _framing(config, image) == ("cropped" if siglip else "squashed"):
        does, only = ("cuts", "resized whole") if siglip else ("resizes whole", "cut to their middle")
        reasons.append(f"its image processor {does} pictures; beside this tower they are read padded or {only}.")
    return reasons


def _tokens(config: Any, image: ImageSettings) -> dict[str, Any]:
    name = "pad" if _framing(config, image) == "padded" else "square"
    vision = config.vision_config
    cells = (vision.image_size // vision.patch_size) ** 2 + 1
    video = frames_without_rows(config, cells)
    return {"pooling": "none", "tokenizer": {"image": name, "multi_image": name, "video": video}}


def _export_reasons(model: OneVision) -> list[str]:
    router: Any = model.router
    reasons = [
        f"tokenizer.{scenario}: only one view without rows of its own can be expressed ('pad' or 'square')."
        for scenario in ("image", "multi_image")
        if not _is_one_view(getattr(router, scenario))
    ]
    if not reasons and router.image.framing != router.multi_image.framing:
        reasons.append("tokenizer.multi_image: it frames pictures otherwise than tokenizer.image; llava has one way.")
    return reasons


def _is_one_view(tokenizer: Any) -> bool:
    return isinstance(tokenizer, OneView) and not tokenizer.newline


def _settings(model: OneVision) -> dict[str, Any]:
    return {"image_seq_length": model.encoder.grid.area}


def _processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    framing = model.router.image.framing  # type: ignore[attr-defined]
    image: Any
    if framing == "padded":
        image = LlavaImageProcessorPil(**colours(model), **cut_to(model), do_pad=True)
    elif framing == "cropped":
        image = CLIPImageProcessorPil(**colours(model), **cut_to(model))
    else:
        image = SiglipImageProcessorPil(**colours(model), **squashed_to(model), resample=3)
    return LlavaProcessor(image, tokenizer, **processor_settings(model))


FAMILY = Family(
    model_type="llava",
    visual_tokens=("<image>",),
    newline=False,
    towers=("clip_vision_model", "siglip_vision_model"),
    image_reasons=_image_reasons,
    token_reasons=lambda config: [],
    tokens=_tokens,
    export_reasons=_export_reasons,
    settings=_settings,
    processor=_processor,
)
DOOR = hf_door(FAMILY)
