"""transformers' `llava_next_video`: pictures as in `llava_next`, frames pooled before the projector."""

from __future__ import annotations

from typing import Any

from mmblocks.model.convert.transformers.export import colours, cut_to, processor_settings, squashed_to
from mmblocks.model.convert.transformers.families import Family, ImageSettings, hf_door
from mmblocks.model.convert.transformers.llava_next import export_reasons, image_processor, settings
from mmblocks.model.convert.transformers.tokens import anyres, clip_reasons, frames_without_rows, has_cls, tiled_reasons
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.window import AveragePooling, MaxPooling
from mmblocks.tokenizers.frames import Frames

POOLINGS = {"average": AveragePooling, "max": MaxPooling}


def _token_reasons(config: Any) -> list[str]:
    reasons = has_cls(config)
    if config.spatial_pool_mode not in POOLINGS:
        reasons.append(
            f"spatial_pool_mode is {config.spatial_pool_mode!r}; only {' and '.join(map(repr, POOLINGS))} are read."
        )
    return reasons


def _tokens(config: Any, image: ImageSettings) -> dict[str, Any]:
    vision, stride = config.vision_config, config.spatial_pool_stride
    side = vision.image_size // vision.patch_size // stride
    return {
        "pooling": {"name": config.spatial_pool_mode, "stride": stride},
        "tokenizer": {
            "image": anyres(config),
            "multi_image": anyres(config),
            "video": frames_without_rows(config, side * side, pool_at="features"),
        },
    }


def _export_reasons(model: OneVision) -> list[str]:
    reasons = export_reasons(model)
    video: Any = model.router.video
    if not (isinstance(video, Frames) and video.newline == "none" and video.pool_at == "features"):
        reasons.append("tokenizer.video: only 'frames' with newline='none' and pool_at='features' can be expressed.")
        return reasons
    if not isinstance(video.pooling, tuple(POOLINGS.values())):
        reasons.append(f"pooling: {video.pooling}; only {' and '.join(map(repr, POOLINGS))} can be expressed.")
    elif 4 * video.pooling.out_grid(video.grid).area != video.grid.area:
        reasons.append(
            f"pooling: {video.pooling} makes {video.pooling.out_grid(video.grid)} of {video.grid} cells; transformers' "
            "processor always counts a quarter of them."
        )
    return reasons + clip_reasons(video)


def _settings(model: OneVision) -> dict[str, Any]:
    pooling: Any = model.router.video.pooling  # type: ignore[attr-defined]
    mode = next(name for name, kind in POOLINGS.items() if isinstance(pooling, kind))
    cells = pooling.out_grid(model.encoder.grid).area
    return settings(model) | {
        "spatial_pool_mode": mode,
        "spatial_pool_stride": pooling.stride,
        "video_seq_length": cells,
    }


def _processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    frames: dict[str, Any] = squashed_to(model) | {"do_center_crop": False} if model.encoder.squash else cut_to(model)
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**colours(model), **frames),
        image_processor(model),
        tokenizer,
        **processor_settings(model),
    )


FAMILY = Family(
    model_type="llava_next_video",
    visual_tokens=("<image>", "<video>"),
    newline=True,
    towers=("clip_vision_model", "siglip_vision_model"),
    image_reasons=tiled_reasons,
    token_reasons=_token_reasons,
    tokens=_tokens,
    export_reasons=_export_reasons,
    settings=_settings,
    processor=_processor,
)
DOOR = hf_door(FAMILY)
