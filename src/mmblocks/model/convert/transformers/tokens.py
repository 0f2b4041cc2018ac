"""Visual tokens of transformers' LLaVAs in our words: what several families have in common."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mmblocks.components import VisionTokenizer
from mmblocks.model.convert.transformers.reading import (
    ImageSettings,
    count_max_frames,
    list_processor_reasons,
    list_side_reasons,
)
from mmblocks.model.onevision import OneVision
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.frames import Frames

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)


def make_anyres_settings(config: PreTrainedConfig, **settings: object) -> dict[str, Any]:
    """`image_grid_pinpoints`, which transformers writes height first."""
    pinpoints = [[width, height] for height, width in config.image_grid_pinpoints]
    return {"name": "anyres", "pinpoints": pinpoints, "rounding": "transformers", **settings}


def make_frames_settings(config: PreTrainedConfig, tokens_per_frame: int, **settings: object) -> dict[str, Any]:
    """Videos as pooled frames and nothing between them, as many as a sequence holds."""
    most = count_max_frames(config, tokens_per_frame)
    return {"name": "frames", "newline": "none", "max_frames": most, **settings}


def list_pinpoints(model: OneVision) -> list[list[int]]:
    """The canvases of a model's images as `image_grid_pinpoints`."""
    image: Any = model.router.image
    return [list(canvas) for canvas in image.canvases]


def list_tiling_reasons(config: PreTrainedConfig, image: ImageSettings) -> list[str]:
    """Sides and pinpoints of an image processor that are not the config's."""
    pinpoints = {"image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints]}
    return [*list_side_reasons(config, image), *list_processor_reasons(image, pinpoints)]


def is_unpadded_anyres(tokenizer: VisionTokenizer) -> bool:
    """Whether images are tiled as LLaVA-NeXT's are in transformers: with a base view, unpadded."""
    tiled: Any = tokenizer
    return isinstance(tiled, AnyRes) and tiled.merge == "unpad" and tiled.base


def log_rounding(image: AnyRes) -> None:
    """Log that transformers cuts the feature map of some image sizes otherwise than the original code."""
    if image.rounding != "transformers":
        log.info("unpadding: transformers rounds where the original truncates; 1 in some 20 000 image sizes differs")


def list_video_reasons(video: Frames) -> list[str]:
    """What no processor of transformers does with the frames of a video."""
    reasons = []
    if video.tell_times is not None:
        reasons.append(f"tokenizer.video: tell_times={video.tell_times!r}; no sentence about times can be expressed.")
    if video.force:
        reasons.append("tokenizer.video: force=true repeats the frames of short videos, which cannot be expressed.")
    return reasons
