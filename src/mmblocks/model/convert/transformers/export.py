"""A model of ours as a checkpoint of one of transformers' families, with the hub's names and a processor."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmblocks.errors import ConfigError
from mmblocks.model.convert import door_of
from mmblocks.model.convert.export_text import finish_config, finish_tokenizer, write_generation_config
from mmblocks.model.convert.keys import HUB, to_theirs
from mmblocks.model.convert.transformers.jinja import jinja_of
from mmblocks.model.convert.transformers.towers import TOWERS, tower_config, tower_of
from mmblocks.model.convert.weights import LM_HEAD
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import INDEX
from mmblocks.projectors.mlp import MLP
from mmblocks.storage import replaced_whole

if TYPE_CHECKING:
    from mmblocks.model.convert.transformers.families import Family

log = logging.getLogger(__name__)


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
    `ConfigError` listing everything about the model that the family cannot express; clips are left out, with a warning
    in the log, where it knows none. For equal pixels, pictures must be prepared by the PIL image processor, which
    `AutoImageProcessor.from_pretrained(folder, backend="pil")` is (`image_processor` of the AutoProcessor).
    """
    return door_of(family).export(model, Path(folder), dtype=dtype, max_shard_size=max_shard_size)


def export_family(
    family: Family, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
) -> Path:
    """`export_hf` for a family's record."""
    if reasons := reasons_against(family, model):
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise ConfigError(f"transformers' {family.model_type} cannot express this model:\n{listed}")
    if not family.clips:
        log.warning("transformers' %s knows no clips: tokenizer.video is left out.", family.model_type)
    tokenizer = _with_visual_tokens(model, family.visual_tokens)
    with replaced_whole(folder) as fresh:
        _write_config(family, model, tokenizer, fresh, dtype)
        write_weights(_tensors(model, dtype), fresh, max_shard_size)
        write_generation_config(model, fresh)
        family.processor(model, tokenizer).save_pretrained(fresh)
        finish_tokenizer(model, fresh)
    return folder


# What transformers cannot say ---------------------------------------------------------------------------------------


def reasons_against(family: Family, model: OneVision) -> list[str]:
    """Everything about a model that a family cannot express; empty when it can be exported."""
    reasons = []
    if not isinstance(model.encoder, tuple(TOWERS[tower].encoder for tower in family.towers)):
        names = " or ".join(TOWERS[tower].name for tower in family.towers)
        reasons.append(f"encoder: {type(model.encoder).__name__}; {family.model_type} is written with {names} only.")
    if not _is_two_layers(model.projector):
        reasons.append(
            f"projector: {family.model_type} has two linear layers with a GELU between them ('mlp', depth=2)."
        )
    reasons += family.export_reasons(model)
    reasons += _mark_reasons(family, model)
    return reasons + _text_reasons(family, model)


def _is_two_layers(projector: Any) -> bool:
    if not (isinstance(projector, MLP) and len(projector.body) == 2):  # type: ignore[arg-type]
        return False
    layers = (projector.body[0], projector.head)  # type: ignore[index]
    exact = isinstance(projector.body[1], nn.GELU) and projector.body[1].approximate == "none"  # type: ignore[index]
    return exact and all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers)


def _mark_reasons(family: Family, model: OneVision) -> list[str]:
    known = {"newline"} if family.newline else set()
    foreign = sorted(set(model.marks.keys()) - known)
    reasons = [f"marks: {family.model_type} has no learned row {mark!r}." for mark in foreign]
    if family.newline and "newline" not in model.marks:
        reasons.append(f"marks: {family.model_type} has a learned row 'newline', which this model never made.")
    return reasons


def _text_reasons(family: Family, model: OneVision) -> list[str]:
    reasons = []
    if jinja_of(model.template) is None:
        reasons.append(
            f"template: {type(model.template).__name__} has no form in transformers; use one such as qwen_2 or vicuna_v1."
        )
    foreign = [name for name in model.backbone.state_dict() if not name.startswith(("lm.model.", "lm.lm_head."))]
    if foreign:
        reasons.append(
            f"backbone: {model.backbone.config.model_type!r} names its tensors {foreign[0]!r}, unlike Qwen or Llama."
        )
    if model.backbone.tokenizer_source is None:
        return [*reasons, "backbone: no text tokenizer; set backbone.text_tokenizer, a processor needs one."]
    tokenizer = _with_visual_tokens(model, family.visual_tokens)
    beyond = [t for t in family.visual_tokens if tokenizer.convert_tokens_to_ids(t) >= model.backbone.vocab_size]
    if beyond:
        reasons.append(
            f"backbone: its {model.backbone.vocab_size} token embeddings leave no room for {' and '.join(beyond)}; "
            "use a larger vocabulary."
        )
    return reasons


# What is written ----------------------------------------------------------------------------------------------------


def _with_visual_tokens(model: OneVision, visual_tokens: tuple[str, ...]) -> Any:
    """A copy of the text tokenizer in which <image> (and <video>) are special tokens."""
    from transformers import AddedToken

    tokenizer = copy.deepcopy(model.backbone.text_tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in visual_tokens], special_tokens=True)
    return tokenizer


def _write_config(family: Family, model: OneVision, tokenizer: Any, folder: Path, dtype: torch.dtype | None) -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

    text = model.backbone.config.to_dict()
    text["architectures"] = [type(model.backbone.lm).__name__]
    ids = {f"{token.strip('<>')}_token_index": tokenizer.convert_tokens_to_ids(token) for token in family.visual_tokens}
    kind: Any = CONFIG_MAPPING[family.model_type]
    config = kind(
        **tower_config(model),
        **ids,
        text_config=text,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(model.backbone.config.tie_word_embeddings),
        **family.settings(model),
    )
    config.architectures = [CLASSES[family.model_type]]
    config.dtype = dtype or next(model.parameters()).dtype
    config.save_pretrained(folder)
    finish_config(folder)


def _tensors(model: OneVision, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """All tensors under the hub's names. The final LayerNorm, which transformers builds and never reads, is neutral."""
    state = model.state_dict()
    if model.backbone.config.tie_word_embeddings:
        state.pop(LM_HEAD, None)
    dim, kind = model.encoder.vision_model.config.hidden_size, next(model.encoder.parameters()).dtype
    state["encoder.vision_model.post_layernorm.weight"] = torch.ones(dim, dtype=kind)
    state["encoder.vision_model.post_layernorm.bias"] = torch.zeros(dim, dtype=kind)
    return {
        to_theirs(name, HUB): tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in state.items()
    }


def write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    """Safetensors in one file, or in shards with an index."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


# What the families' processors share --------------------------------------------------------------------------------


def processor_settings(model: OneVision) -> dict[str, Any]:
    """What every processor but OneVision's is told of patches, CLS and the chat."""
    tower = tower_of(model)
    assert tower, "refused before"
    return {
        "patch_size": model.encoder.vision_model.config.patch_size,
        "vision_feature_select_strategy": tower_config(model)["vision_feature_select_strategy"],
        "num_additional_image_tokens": int(tower.cls),
        "chat_template": jinja_of(model.template),
    }


def colours(model: OneVision) -> dict[str, Any]:
    """The encoder's mean and deviation, as image processors take them."""
    return {"image_mean": list(model.encoder.pixel_mean), "image_std": list(model.encoder.pixel_std)}


def squashed_to(model: OneVision) -> dict[str, Any]:
    """Pictures resized whole to the view."""
    return {"size": {"height": model.encoder.view_px.height, "width": model.encoder.view_px.width}}


def cut_to(model: OneVision) -> dict[str, Any]:
    """Pictures resized by their shorter side and cut to the middle."""
    return {"size": {"shortest_edge": model.encoder.view_px.height}, "crop_size": squashed_to(model)["size"]}
