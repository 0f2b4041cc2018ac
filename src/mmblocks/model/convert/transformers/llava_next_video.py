"""transformers' `llava_next_video`: images as in `llava_next`, frames pooled before the projector."""

from __future__ import annotations

from typing import Any

from mmblocks.model.convert.transformers.export import (
    make_colour_settings,
    make_crop_settings,
    make_processor_settings,
    make_squash_settings,
)
from mmblocks.model.convert.transformers.families import HFFamily, ImageSettings, make_hf_layout
from mmblocks.model.convert.transformers.llava_next import (
    list_export_reasons,
    make_config_settings,
    make_image_processor,
)
from mmblocks.model.convert.transformers.tokens import (
    list_cls_reasons,
    list_tiling_reasons,
    list_video_reasons,
    make_anyres_settings,
    make_frames_settings,
)
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.window import AveragePooling, MaxPooling
from mmblocks.tokenizers.frames import Frames

POOLINGS = {"average": AveragePooling, "max": MaxPooling}


def _list_token_reasons(config: Any) -> list[str]:
    reasons = list_cls_reasons(config)
    if config.spatial_pool_mode not in POOLINGS:
        reasons.append(
            f"spatial_pool_mode is {config.spatial_pool_mode!r}; only {' and '.join(map(repr, POOLINGS))} are read."
        )
    return reasons


def _make_tokenizer_settings(config: Any, image: ImageSettings) -> dict[str, Any]:
    vision, stride = config.vision_config, config.spatial_pool_stride
    side = vision.image_size // vision.patch_size // stride
    return {
        "pooling": {"name": config.spatial_pool_mode, "stride": stride},
        "tokenizer": {
            "image": make_anyres_settings(config),
            "multi_image": make_anyres_settings(config),
            "video": make_frames_settings(config, side * side, pool_at="features"),
        },
    }


def _list_export_reasons(model: OneVision) -> list[str]:
    reasons = list_export_reasons(model)
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
    return reasons + list_video_reasons(video)


def _make_config_settings(model: OneVision) -> dict[str, Any]:
    pooling: Any = model.router.video.pooling  # type: ignore[attr-defined]
    mode = next(name for name, kind in POOLINGS.items() if isinstance(pooling, kind))
    cells = pooling.out_grid(model.encoder.grid).area
    return make_config_settings(model) | {
        "spatial_pool_mode": mode,
        "spatial_pool_stride": pooling.stride,
        "video_seq_length": cells,
    }


def _make_processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    frames: dict[str, Any] = (
        make_squash_settings(model) | {"do_center_crop": False} if model.encoder.squash else make_crop_settings(model)
    )
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**make_colour_settings(model), **frames),
        make_image_processor(model),
        tokenizer,
        **make_processor_settings(model),
    )


FAMILY = HFFamily(
    model_type="llava_next_video",
    visual_tokens=("<image>", "<video>"),
    newline=True,
    towers=("clip_vision_model", "siglip_vision_model"),
    list_image_reasons=list_tiling_reasons,
    list_token_reasons=_list_token_reasons,
    make_tokenizer_settings=_make_tokenizer_settings,
    list_export_reasons=_list_export_reasons,
    make_config_settings=_make_config_settings,
    make_processor=_make_processor,
)
LAYOUT = make_hf_layout(FAMILY)
