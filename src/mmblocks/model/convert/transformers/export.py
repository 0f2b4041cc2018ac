"""A model of ours as a checkpoint of one of transformers' families, with the hub's names and a processor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.model.convert import layout_of
from mmblocks.model.convert.export_text import finish_config
from mmblocks.model.convert.keys import NameTable, to_theirs
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.convert.transformers.towers import find_tower, make_tower_config
from mmblocks.model.convert.weights import LM_HEAD
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import INDEX


def export_hf(
    model: OneVision,
    folder: Path | str,
    family: str = "llava_onevision",
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a folder that transformers' AutoModelForImageTextToText and AutoProcessor load, whole or not at all.

    family: transformers' model_type. dtype: type of the stored weights, by default the type they have. Raises
    `ConfigError` listing everything about the model that the family cannot express; a family without videos is written
    without `tokenizer.video`, with a warning in the log. For equal pixels, images must be prepared by the PIL image
    processor, which `AutoImageProcessor.from_pretrained(folder, backend="pil")` is (`image_processor` of the
    AutoProcessor).
    """
    return layout_of(family).export_model(model, Path(folder), dtype=dtype, max_shard_size=max_shard_size)


def write_config(
    model_type: str, model: OneVision, entries: Mapping[str, Any], folder: Path, dtype: torch.dtype | None
) -> None:
    """config.json of a LLaVA of transformers. entries: those of the family."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

    text = model.backbone.config.to_dict()
    text["architectures"] = [type(model.backbone.lm).__name__]
    kind: Any = CONFIG_MAPPING[model_type]
    config = kind(
        **make_tower_config(model),
        text_config=text,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(model.backbone.config.tie_word_embeddings),
        **entries,
    )
    config.architectures = [CLASSES[model_type]]
    config.dtype = dtype or next(model.parameters()).dtype
    config.save_pretrained(folder)
    finish_config(folder)


def collect_tensors(
    model: OneVision, table: NameTable, dtype: torch.dtype | None, *, add_final_norm: bool = False
) -> dict[str, Tensor]:
    """All tensors on the CPU under the names of a layout, without a tied language head.

    add_final_norm: add a neutral final LayerNorm of the encoder, which transformers builds and never reads.
    """
    state = model.state_dict()
    if model.backbone.config.tie_word_embeddings:
        state.pop(LM_HEAD, None)
    if add_final_norm:
        dim, kind = model.encoder.vision_model.config.hidden_size, next(model.encoder.parameters()).dtype
        state["encoder.vision_model.post_layernorm.weight"] = torch.ones(dim, dtype=kind)
        state["encoder.vision_model.post_layernorm.bias"] = torch.zeros(dim, dtype=kind)
    return {
        to_theirs(name, table): tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in state.items()
    }


def write_weights(tensors: Mapping[str, Tensor], folder: Path, max_shard_size: str) -> None:
    """Safetensors in one file, or in shards with an index."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


# Settings of processors ---------------------------------------------------------------------------------------------


def make_processor_settings(model: OneVision) -> dict[str, Any]:
    """Patches, CLS token and chat template, for every processor but OneVision's."""
    tower = find_tower(model)
    return {
        "patch_size": model.encoder.vision_model.config.patch_size,
        "vision_feature_select_strategy": make_tower_config(model)["vision_feature_select_strategy"],
        "num_additional_image_tokens": int(tower.has_cls),
        "chat_template": to_jinja(model.template),
    }


def make_crop_settings(model: OneVision) -> dict[str, Any]:
    """Images resized by their shorter side and cropped to the middle, with the encoder's mean and deviation."""
    squash = make_squash_settings(model)
    return {**squash, "size": {"shortest_edge": model.encoder.view_px.height}, "crop_size": squash["size"]}


def make_squash_settings(model: OneVision) -> dict[str, Any]:
    """Images resized whole to the encoder's view, with its mean and deviation."""
    encoder = model.encoder
    size = {"height": encoder.view_px.height, "width": encoder.view_px.width}
    return {"image_mean": list(encoder.pixel_mean), "image_std": list(encoder.pixel_std), "size": size}
