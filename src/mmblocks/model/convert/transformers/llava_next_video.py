"""transformers' `llava_next_video`: images as in `llava_next`, frames pooled before the projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmblocks.model.convert.transformers.export import make_crop_settings, make_processor_settings, make_squash_settings
from mmblocks.model.convert.transformers.llava_next import LlavaNext
from mmblocks.model.convert.transformers.reading import ImageSettings
from mmblocks.model.convert.transformers.tokens import list_video_reasons, make_frames_settings
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.window import AveragePooling, MaxPooling
from mmblocks.tokenizers.frames import Frames

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

POOLINGS = {"average": AveragePooling, "max": MaxPooling}
KNOWN_POOLINGS = " and ".join(map(repr, POOLINGS))


class LlavaNextVideo(LlavaNext):
    model_type = "llava_next_video"
    about = "transformers' llava_next_video"
    supports_video = True

    def list_config_reasons(self, config: PreTrainedConfig) -> list[str]:
        reasons = super().list_config_reasons(config)
        if config.spatial_pool_mode not in POOLINGS:
            reasons.append(f"spatial_pool_mode is {config.spatial_pool_mode!r}; only {KNOWN_POOLINGS} are read.")
        return reasons

    def make_tokenizer_settings(self, config: PreTrainedConfig, image: ImageSettings) -> dict[str, Any]:
        tokenizers = super().make_tokenizer_settings(config, image)["tokenizer"]
        vision, stride = config.vision_config, config.spatial_pool_stride
        side = vision.image_size // vision.patch_size // stride
        video = make_frames_settings(config, side * side, pool_at="features")
        pooling = {"name": config.spatial_pool_mode, "stride": stride}
        return {"pooling": pooling, "tokenizer": {**tokenizers, "video": video}}

    def list_tokenizer_reasons(self, model: OneVision) -> list[str]:
        reasons = super().list_tokenizer_reasons(model)
        video: Any = model.router.video
        if not (isinstance(video, Frames) and video.newline == "none" and video.pool_at == "features"):
            return [
                *reasons,
                "tokenizer.video: only 'frames' with newline='none' and pool_at='features' can be expressed.",
            ]
        pooled = video.pooling.out_grid(video.grid)
        if not isinstance(video.pooling, tuple(POOLINGS.values())):
            reasons.append(f"pooling: {video.pooling}; only {KNOWN_POOLINGS} can be expressed.")
        elif 4 * pooled.area != video.grid.area:
            reasons.append(
                f"pooling: {video.pooling} makes {pooled} of {video.grid} cells; transformers' processor always counts a "
                "quarter of them."
            )
        return reasons + list_video_reasons(video)

    def make_config_entries(self, model: OneVision) -> dict[str, Any]:
        pooling: Any = model.router.video.pooling  # type: ignore[attr-defined]
        return super().make_config_entries(model) | {
            "spatial_pool_mode": next(name for name, kind in POOLINGS.items() if isinstance(pooling, kind)),
            "spatial_pool_stride": pooling.stride,
            "video_seq_length": pooling.out_grid(model.encoder.grid).area,
        }

    def make_processor(self, model: OneVision, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        from transformers import LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

        frames: dict[str, Any] = make_crop_settings(model)
        if model.encoder.squash:
            frames = make_squash_settings(model) | {"do_center_crop": False}
        return LlavaNextVideoProcessor(
            LlavaNextVideoVideoProcessor(**frames),
            self.make_image_processor(model),
            tokenizer,
            **make_processor_settings(model),
        )


LAYOUT = LlavaNextVideo()
