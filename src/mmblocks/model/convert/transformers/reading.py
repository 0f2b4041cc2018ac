"""Config and image processor of a checkpoint of transformers: read, and compared with what we compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.pretrained import read_local_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BICUBIC = 3
ImageSettings = Mapping[str, Any]
"""The settings of a checkpoint's image processor; empty for a folder without one, which is taken as standard."""


def read_family_config(folder: Path, model_type: str) -> PreTrainedConfig:
    """The checkpoint's config as transformers reads it; its text config says whether embeddings are tied."""
    from transformers import CONFIG_MAPPING

    raw = read_local_config(folder)
    if raw.get("model_type") != model_type:
        raise CheckpointError(f"{folder} holds a {raw.get('model_type')!r} model, not {model_type!r}.")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as cause:  # transformers' strict configs raise errors of several packages
        raise CheckpointError(f"{folder}/config.json is not a config of {model_type}: {cause}") from cause
    whole, text = getattr(config, "tie_word_embeddings", False), config.text_config
    text.tie_word_embeddings = whole or text.tie_word_embeddings
    return config


def read_image_settings(folder: Path) -> ImageSettings:
    """The settings of the checkpoint's image processor, from either of the files where transformers has kept them."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            settings = read_object(folder / name)
            image = settings.get("image_processor", settings)
            if "image_mean" in image:
                return image
    return {}


def list_fixed_reasons(config: PreTrainedConfig, fixed: Mapping[str, object]) -> list[str]:
    """Config entries that differ from the only value that is read."""
    return [
        f"{key} is {value!r}; only {wanted!r} is read."
        for key, wanted in fixed.items()
        if (value := getattr(config, key)) != wanted
    ]


def list_processor_reasons(image: ImageSettings, fixed: Mapping[str, object]) -> list[str]:
    """Settings of an image processor that differ from the only value that is read."""
    return [
        f"its image processor has {key}={image[key]!r}; only {wanted!r} is read."
        for key, wanted in fixed.items()
        if image.get(key, wanted) != wanted
    ]


def list_side_reasons(config: PreTrainedConfig, image: ImageSettings) -> list[str]:
    """Sizes of an image processor, in any form that transformers has written, that are not the vision tower's."""
    side, reasons = config.vision_config.image_size, []
    for key in ("size", "crop_size"):
        size = image.get(key)
        if size is None or (key == "crop_size" and image.get("do_center_crop") is False):
            continue
        if ({size} if isinstance(size, int) else set(size.values())) != {side}:
            reasons.append(f"its image processor has {key}={size}; only {side} is read.")
    return reasons


def count_max_frames(config: PreTrainedConfig, tokens_per_frame: int, most: int = 32) -> int:
    """How many frames a sequence of the language model holds, at most `most`, with room for text."""
    return max(1, min(most, (config.text_config.max_position_embeddings - 64) // tokens_per_frame))
