"""Visual tokens of transformers' LLaVAs in our words: what several families say in the same way."""

from __future__ import annotations

import logging
from typing import Any

from mmblocks.model.convert.transformers.families import ImageSettings, different, longest_clip, side_reasons
from mmblocks.model.onevision import OneVision
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.frames import Frames

log = logging.getLogger(__name__)


def anyres(config: Any, **settings: Any) -> dict[str, Any]:
    """`image_grid_pinpoints`, which transformers writes height first."""
    pinpoints = [[width, height] for height, width in config.image_grid_pinpoints]
    return {"name": "anyres", "pinpoints": pinpoints, "rounding": "transformers", **settings}


def pinpoints_of(model: OneVision) -> list[list[int]]:
    """The canvases of a model's pictures as `image_grid_pinpoints`."""
    image: Any = model.router.image
    return [list(canvas) for canvas in image.canvases]


def tiled_reasons(config: Any, image: ImageSettings) -> list[str]:
    """Sides and pinpoints of an image processor that are not the config's."""
    pinpoints = {"image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints]}
    return [*side_reasons(config, image), *different(image, pinpoints)]


def has_cls(config: Any) -> list[str]:
    """Tiles cannot be joined with a CLS token among their patches, neither there nor here."""
    if config.vision_config.model_type == "clip_vision_model" and config.vision_feature_select_strategy != "default":
        return [
            "vision_feature_select_strategy is 'full', which leaves CLIP's CLS token among the patches of a tile; "
            "only 'default' is read."
        ]
    return []


def is_anyres(tokenizer: Any) -> bool:
    """Whether pictures are tiled as LLaVA-NeXT does in transformers: base view, unpadded, no limit of tiles."""
    return isinstance(tokenizer, AnyRes) and tokenizer.merge == "unpad" and tokenizer.base and not tokenizer.max_tiles


def tell_rounding(image: AnyRes) -> None:
    """Say what becomes of a picture whose map the original cuts otherwise than transformers does."""
    if image.rounding != "transformers":
        log.info("unpadding: transformers rounds where the original truncates; 1 in some 20 000 picture sizes differs")


def clip_reasons(video: Frames) -> list[str]:
    """What no processor of transformers does with the frames of a clip."""
    reasons = []
    if video.tell_times is not None:
        reasons.append(f"tokenizer.video: tell_times={video.tell_times!r}; no sentence about times can be expressed.")
    if video.force:
        reasons.append("tokenizer.video: force=true repeats the frames of short clips, which cannot be expressed.")
    return reasons


def frames_without_rows(config: Any, cells: int, **settings: Any) -> dict[str, Any]:
    """Clips as pooled frames and nothing between them, as many as a sequence holds."""
    return {"name": "frames", "newline": "none", "max_frames": longest_clip(config, cells), **settings}
