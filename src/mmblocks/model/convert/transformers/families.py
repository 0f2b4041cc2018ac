"""Families of transformers' vision-language models as models of ours: what they share, written once.

A family is a record (`Family`) in a file of its own, hf_*.py; `hf_door` makes the door of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.model.convert import LAYOUTS, keys, layout_of, read_raw_config
from mmblocks.model.convert.chat import ChatChoice, choose_chat_template
from mmblocks.model.convert.door import FunctionLayout, Runner
from mmblocks.model.convert.probe import compute_transformers_logits, load_transformers
from mmblocks.model.convert.text import (
    build_from_tensors,
    list_tokenizer_reasons,
    make_backbone_settings,
    read_checkpoint_tokenizer,
    refuse_conversion,
)
from mmblocks.model.convert.transformers.towers import TOWERS, list_tower_reasons, make_encoder_settings
from mmblocks.model.convert.weights import MatchedTensors, read_weights
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.pretrained import read_local_config

BICUBIC = 3
ImageSettings = Mapping[str, Any]
"""The settings of a checkpoint's image processor; empty for a folder without one, which is taken as standard."""


@dataclass(frozen=True, slots=True)
class HFFamily:
    """What is particular to one model_type.

    visual_tokens: texts that its processor replaces. newline: whether it has the learned row `image_newline`.
    towers: vision towers it is written with. image_reasons, token_reasons: what its image processor and its config ask
    for that we do not compute. tokens: our pooling and visual tokenizers for a config. export_reasons: what it cannot
    express of our tokenizers. settings: its own config entries for a model. processor: of (model, text tokenizer).
    """

    model_type: str
    visual_tokens: tuple[str, ...]
    newline: bool
    towers: tuple[str, ...]
    list_image_reasons: Callable[[Any, ImageSettings], list[str]]
    list_token_reasons: Callable[[Any], list[str]]
    make_tokenizer_settings: Callable[[Any, ImageSettings], dict[str, Any]]
    list_export_reasons: Callable[[OneVision], list[str]]
    make_config_settings: Callable[[OneVision], dict[str, Any]]
    make_processor: Callable[[OneVision, Any], Any]

    @property
    def supports_video(self) -> bool:
        return "<video>" in self.visual_tokens


def make_hf_layout(family: HFFamily) -> FunctionLayout:
    """The door to a family of transformers."""
    from mmblocks.model.convert.transformers import export as export_hf

    def read_model(
        folder: Path, *, dtype: torch.dtype = torch.float32, template: str | None = None
    ) -> tuple[OneVision, MatchedTensors]:
        config = read_family_config(folder, family.model_type)
        tokenizer = read_checkpoint_tokenizer(folder)
        chat = choose_chat_template(folder, tokenizer, template)
        spec = make_spec(family, config, folder, tokenizer, chat)
        return build_from_tensors(spec, config.text_config, read_weights(folder), keys.HF_LAYOUTS, dtype, folder, chat)

    def write_model(model: OneVision, folder: Path, **options: Any) -> Path:
        return export_hf.export_family(family, model, folder, **options)

    return FunctionLayout(
        f"transformers' {family.model_type}",
        lambda folder: can_read(folder, family.model_type),
        read_model,
        lambda model: export_hf.reasons_against(family, model),
        write_model,
        load_runner,
        supports_video=family.supports_video,
    )


def import_hf(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> OneVision:
    """Read a local checkpoint of transformers in any layout that transformers has written, or the hub's.

    Raises `ConfigError` listing what its config asks for that we do not compute in the same way, `CheckpointError`
    listing every tensor that is missing, extra or of another shape.
    """
    return import_hf_with_report(folder, dtype=dtype)[0]


def import_hf_with_report(
    folder: Path | str, *, dtype: torch.dtype = torch.float32
) -> tuple[OneVision, MatchedTensors]:
    """`import_hf`, and how each tensor was accounted for."""
    folder = Path(folder)
    model_type = read_local_config(folder).get("model_type")
    families = [name for name, module in LAYOUTS.items() if module.startswith("transformers.")]
    if model_type not in families:
        raise CheckpointError(f"{folder} holds a {model_type!r} model; {', '.join(families)} are read.")
    return layout_of(str(model_type)).import_model(folder, dtype=dtype)


def can_read(folder: Path, model_type: str) -> bool:
    """Whether a config.json is transformers' own for this family (LLaVA's own code writes the same model_type)."""
    config = read_raw_config(folder)
    return config.get("model_type") == model_type and "mm_vision_tower" not in config


def load_runner(folder: Path, dtype: torch.dtype) -> Runner:
    theirs = load_transformers(folder, dtype)
    return lambda model, probe, rows: compute_transformers_logits(theirs, model, probe, rows)


# In -----------------------------------------------------------------------------------------------------------------


def read_family_config(folder: Path, model_type: str) -> Any:
    """The checkpoint's config as transformers understands it; its text config says whether embeddings are tied."""
    from transformers import CONFIG_MAPPING

    raw = read_local_config(folder)
    if raw.get("model_type") != model_type:
        raise CheckpointError(f"{folder} holds a {raw.get('model_type')!r} model, not {model_type!r}.")
    try:
        config: Any = CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as cause:  # transformers' strict configs raise errors of several packages
        raise CheckpointError(f"{folder}/config.json is not a config of {model_type}: {cause}") from cause
    whole, text = getattr(config, "tie_word_embeddings", False), config.text_config
    text.tie_word_embeddings = whole or text.tie_word_embeddings
    return config


def make_spec(family: HFFamily, config: Any, folder: Path, tokenizer: Any, chat: ChatChoice) -> ModelSpec:
    """The composition that computes what the checkpoint's config describes. Raises `ConfigError` listing every reason
    why there is none.
    """
    image = read_image_settings(folder)
    refuse_conversion(
        folder,
        [
            *list_tower_reasons(config),
            *_projector_reasons(config),
            *family.list_token_reasons(config),
            *_list_pixel_reasons(config, image),
            *family.list_image_reasons(config, image),
            *list_tokenizer_reasons(tokenizer, _visual_ids(family, config), config.text_config.vocab_size, chat),
        ],
    )
    return ModelSpec.from_dict(
        {
            "encoder": make_encoder_settings(config),
            "projector": {"name": "mlp", "depth": 2},
            **family.make_tokenizer_settings(config, image),
            "backbone": make_backbone_settings(config.text_config, folder, tokenizer, config.image_token_index),
            "template": chat.spec,
        }
    )


def list_fixed_reasons(config: Any, fixed: Mapping[str, Any]) -> list[str]:
    """Config entries that differ from the only value that is read."""
    return [
        f"{key} is {value!r}; only {wanted!r} is read."
        for key, wanted in fixed.items()
        if (value := getattr(config, key)) != wanted
    ]


def _projector_reasons(config: Any) -> list[str]:
    return list_fixed_reasons(config, {"projector_hidden_act": "gelu", "multimodal_projector_bias": True})


def _visual_ids(family: HFFamily, config: Any) -> dict[str, int]:
    ids = {"<image>": config.image_token_index}
    return ids | ({"<video>": config.video_token_index} if "<video>" in family.visual_tokens else {})


def read_image_settings(folder: Path) -> ImageSettings:
    """What the checkpoint's image processor does, from either of the files that transformers has kept it in."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_object(folder / name)
            image = found.get("image_processor", found)
            if "image_mean" in image:
                return image
    return {}


def _list_pixel_reasons(config: Any, image: ImageSettings) -> list[str]:
    """What the image processor does to every image that ours does not."""
    tower = TOWERS.get(config.vision_config.model_type)
    if tower is None:
        return []
    fixed = {
        "image_mean": list(tower.encoder.pixel_mean),  # type: ignore[attr-defined]
        "image_std": list(tower.encoder.pixel_std),  # type: ignore[attr-defined]
        "resample": BICUBIC,
    }
    return list_processor_reasons(image, fixed)


def list_processor_reasons(image: ImageSettings, fixed: Mapping[str, Any]) -> list[str]:
    """Settings of an image processor that differ from the only value that is read."""
    return [
        f"its image processor has {key}={image[key]!r}; only {wanted!r} is read."
        for key, wanted in fixed.items()
        if image.get(key, wanted) != wanted
    ]


def find_side(image: ImageSettings, key: str, default: int) -> int | None:
    """The side in pixels of a `size` or `crop_size`, in any form transformers has written it; None when not square."""
    size = image.get(key)
    if size is None:
        return default
    sides = {size} if isinstance(size, int) else set(size.values())
    return sides.pop() if len(sides) == 1 else None


def list_side_reasons(config: Any, image: ImageSettings) -> list[str]:
    """Images resized or cut to another side than the tower's."""
    side = config.vision_config.image_size
    found = {key: find_side(image, key, side) for key in ("size", "crop_size")}
    if image.get("do_center_crop") is False:
        found.pop("crop_size")
    return [f"its image processor has {key}={image[key]}; only {side} is read." for key in found if found[key] != side]


def count_max_frames(config: Any, tokens_per_frame: int, most: int = 32) -> int:
    """How many frames a sequence of the language model holds, at most `most`, with room for text."""
    return max(1, min(most, (config.text_config.max_position_embeddings - 64) // tokens_per_frame))
