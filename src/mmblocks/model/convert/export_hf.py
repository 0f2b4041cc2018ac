"""A model of ours as a `llava_onevision` checkpoint of transformers, with the hub's names and a processor."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.encoders.siglip import SigLIP
from mmblocks.errors import ConfigError
from mmblocks.model.checkpoint import replaced_whole
from mmblocks.model.convert.jinja import jinja_of
from mmblocks.model.convert.keys import HUB, to_theirs
from mmblocks.model.convert.weights import INDEX, LM_HEAD
from mmblocks.model.generate import Stop
from mmblocks.model.onevision import OneVision
from mmblocks.poolings.bilinear import BilinearPooling
from mmblocks.projectors.mlp import MLP
from mmblocks.tokenizers.anyres import AnyRes
from mmblocks.tokenizers.frames import Frames
from mmblocks.tokenizers.one_view import OneView

log = logging.getLogger(__name__)

IMAGE, VIDEO = "<image>", "<video>"


def export_hf(
    model: OneVision, folder: Path | str, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
) -> Path:
    """Write a folder that transformers' AutoModelForImageTextToText and AutoProcessor load, whole or not at all.

    dtype: type of the stored weights, by default the type they have. Raises `ConfigError` listing everything about the
    model that `llava_onevision` cannot express. Pictures must be prepared by the slow (PIL) image processor for equal
    pixels: AutoProcessor.from_pretrained(folder, use_fast=False).
    """
    if reasons := reasons_against_export(model):
        raise ConfigError(
            "transformers' llava_onevision cannot express this model:\n" + "\n".join(f"  - {r}" for r in reasons)
        )
    tokenizer = _with_visual_tokens(model)
    with replaced_whole(Path(folder)) as fresh:
        _write_config(model, tokenizer, fresh, dtype)
        _write_weights(_tensors(model, dtype), fresh, max_shard_size)
        _write_generation_config(model, tokenizer, fresh)
        _processor(model, tokenizer).save_pretrained(fresh)
    return Path(folder)


# What transformers cannot say ---------------------------------------------------------------------------------------


def reasons_against_export(model: OneVision) -> list[str]:
    """Everything about a model that `llava_onevision` cannot express; empty when it can be exported."""
    reasons = []
    if not isinstance(model.encoder, SigLIP):
        reasons.append(f"encoder: {type(model.encoder).__name__}; llava_onevision is exported with SigLIP only.")
    if not (isinstance(model.projector, MLP) and len(model.projector.body) == 2):
        reasons.append("projector: llava_onevision has two linear layers with a GELU between them ('mlp', depth=2).")
    return reasons + _tokenizer_reasons(model) + _text_reasons(model)


def _tokenizer_reasons(model: OneVision) -> list[str]:
    router: Any = model.router
    image, several, video = router.image, router.multi_image, router.video
    reasons = []
    if not (isinstance(image, AnyRes) and image.merge == "unpad" and image.base and image.max_tiles is not None):
        reasons.append("tokenizer.image: only 'anyres' with a base view, merge='unpad' and max_tiles can be expressed.")
    elif image.rounding != "transformers":
        log.info("unpadding: transformers rounds where the original truncates; 1 in some 20 000 picture sizes differs")
    if not (isinstance(several, OneView) and several.framing == "padded" and several.newline):
        reasons.append("tokenizer.multi_image: only 'pad' with newline=true can be expressed.")
    if not (isinstance(video, Frames) and video.newline == "one_token" and video.squash):
        reasons.append("tokenizer.video: only 'frames' with newline='one_token' and squashed frames can be expressed.")
    elif video.pooling != BilinearPooling(stride=2):
        reasons.append(f"pooling: {video.pooling}; only 'bilinear' with stride=2 can be expressed.")
    return reasons


def _text_reasons(model: OneVision) -> list[str]:
    reasons = []
    if jinja_of(model.template) is None:
        reasons.append(
            f"template: {type(model.template).__name__} has no form in transformers; use a ChatML or Vicuna one."
        )
    foreign = [name for name in model.backbone.state_dict() if not name.startswith(("lm.model.", "lm.lm_head."))]
    if foreign:
        reasons.append(
            f"backbone: {model.backbone.config.model_type!r} names its tensors {foreign[0]!r}, unlike Qwen or Llama."
        )
    if model.backbone.tokenizer_source is None:
        return [*reasons, "backbone: no text tokenizer; set backbone.text_tokenizer, a processor needs one."]
    tokenizer = _with_visual_tokens(model)
    beyond = [t for t in (IMAGE, VIDEO) if tokenizer.convert_tokens_to_ids(t) >= model.backbone.vocab_size]
    if beyond:
        reasons.append(
            f"backbone: its {model.backbone.vocab_size} token embeddings leave no room for {' and '.join(beyond)}; "
            "use a larger vocabulary."
        )
    return reasons


# What is written ----------------------------------------------------------------------------------------------------


def _with_visual_tokens(model: OneVision) -> Any:
    """A copy of the text tokenizer in which <image> and <video> are special tokens."""
    from transformers import AddedToken

    tokenizer = copy.deepcopy(model.backbone.text_tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in (IMAGE, VIDEO)], special_tokens=True)
    return tokenizer


def _write_config(model: OneVision, tokenizer: Any, folder: Path, dtype: torch.dtype | None) -> None:
    from transformers import LlavaOnevisionConfig, SiglipVisionConfig

    image = cast(AnyRes, model.router.image)
    text = model.backbone.config.to_dict()
    text["architectures"] = [type(model.backbone.lm).__name__]
    vision = SiglipVisionConfig.from_dict(model.encoder.vision_model.config.to_dict())
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio=f"anyres_max_{image.max_tiles}",
        image_grid_pinpoints=[list(canvas) for canvas in image.canvases],
        tie_word_embeddings=bool(model.backbone.config.tie_word_embeddings),
    )
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    config.dtype = dtype or next(model.parameters()).dtype
    config.save_pretrained(folder)


def _tensors(model: OneVision, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """All tensors under the hub's names. The final LayerNorm, which transformers builds and never reads, is neutral."""
    state = model.state_dict()
    if model.backbone.config.tie_word_embeddings:
        state.pop(LM_HEAD, None)
    dim, kind = model.encoder.dim, next(model.encoder.parameters()).dtype
    state["encoder.vision_model.post_layernorm.weight"] = torch.ones(dim, dtype=kind)
    state["encoder.vision_model.post_layernorm.bias"] = torch.zeros(dim, dtype=kind)
    return {
        to_theirs(name, HUB): tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in state.items()
    }


def _write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_generation_config(model: OneVision, tokenizer: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    stops = list(Stop.of(model).tokens)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [None])[0]
    GenerationConfig(eos_token_id=stops or None, bos_token_id=tokenizer.bos_token_id, pad_token_id=pad).save_pretrained(
        folder
    )


def _processor(model: OneVision, tokenizer: Any) -> Any:
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    view, image = model.encoder.view_px, cast(AnyRes, model.router.image)
    pixels: dict[str, Any] = {
        "image_mean": list(model.encoder.pixel_mean),
        "image_std": list(model.encoder.pixel_std),
        "size": {"height": view.height, "width": view.width},
    }
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**pixels, image_grid_pinpoints=[list(canvas) for canvas in image.canvases]),
        tokenizer,
        LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=model.encoder.grid.area,
        vision_feature_select_strategy="full",
        chat_template=jinja_of(model.template),
        vision_aspect_ratio=f"anyres_max_{image.max_tiles}",
    )
