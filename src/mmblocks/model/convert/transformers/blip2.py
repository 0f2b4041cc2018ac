"""transformers' `blip-2` inwards: vision model, Q-Former and language projection around a causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmblocks.errors import ConfigError
from mmblocks.model.convert import keys
from mmblocks.model.convert.chat import ASKED_FOR, ChatChoice
from mmblocks.model.convert.door import Layout
from mmblocks.model.convert.text import assembled, backbone_settings, refuse, stored_ends, tokenizer_of
from mmblocks.model.convert.transformers.families import (
    different,
    fixed_reasons,
    image_settings,
    longest_clip,
    read_config,
    reads,
    run,
)
from mmblocks.model.convert.weights import Matched, read_weights
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec

VISION = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
QFORMER = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}


def read_blip2(
    folder: Path, *, dtype: torch.dtype = torch.float32, template: str | None = None
) -> tuple[OneVision, Matched]:
    """Read a local BLIP-2 checkpoint of transformers whose language model is causal (OPT), and how each tensor was
    accounted for.

    Raises `ConfigError` listing what its config asks for that we do not compute in the same way; around an
    encoder-decoder (T5) `import_vision_parts` reads what is before the language model.
    """
    config = read_config(folder, "blip-2")
    tokenizer = tokenizer_of(folder)
    chat = bare_chat(folder, tokenizer, template)
    spec = spec_of(config, folder, {"name": "qformer", **qformer_settings(config)}, tokenizer, chat)
    return assembled(spec, config.text_config, read_weights(folder), {"blip-2": keys.BLIP2}, dtype, folder, chat)


def spec_of(config: Any, folder: Path, projector: dict[str, Any], tokenizer: Any, chat: ChatChoice) -> ModelSpec:
    """The composition around a Q-Former. Raises `ConfigError` listing every reason why there is none."""
    refuse(folder, [*vision_reasons(config, folder), *_text_reasons(config)])
    placeholder = config.image_token_index if config.image_token_index is not None else 0
    video = {"name": "frames", "newline": "none", "max_frames": longest_clip(config, config.num_query_tokens)}
    return ModelSpec.of(
        {
            "encoder": encoder_settings(config),
            "projector": projector,
            "pooling": "none",
            "tokenizer": {"image": "square", "multi_image": "square", "video": video},
            "backbone": backbone_settings(config.text_config, folder, tokenizer, placeholder),
            "template": chat.spec,
        }
    )


def encoder_settings(config: Any) -> dict[str, Any]:
    """The vision model as our `blip2_vit`."""
    vision = config.vision_config
    return {
        "name": "blip2_vit",
        "image_px": vision.image_size,
        "patch_px": vision.patch_size,
        "dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp_dim": vision.intermediate_size,
    }


def qformer_settings(config: Any) -> dict[str, Any]:
    """The Q-Former as settings of our `qformer`."""
    qformer = config.qformer_config
    return {
        "queries": config.num_query_tokens,
        "dim": qformer.hidden_size,
        "depth": qformer.num_hidden_layers,
        "heads": qformer.num_attention_heads,
        "mlp_dim": qformer.intermediate_size,
        "cross_every": qformer.cross_attention_frequency,
    }


def vision_reasons(config: Any, folder: Path) -> list[str]:
    """What the parts before the language model ask for that ours do not compute."""
    vision, side = config.vision_config, config.vision_config.image_size
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    reasons = [f"vision_config.{reason}" for reason in fixed_reasons(vision, VISION)]
    reasons += [f"qformer_config.{reason}" for reason in fixed_reasons(config.qformer_config, QFORMER)]
    image = {**colours, "resample": 3, "size": {"height": side, "width": side}}
    return reasons + different(image_settings(folder), image)


def _text_reasons(config: Any) -> list[str]:
    if config.use_decoder_only_language_model:
        return []
    return [
        f"its language model is {config.text_config.model_type!r}, an encoder-decoder, which cannot be a backbone here; "
        "`mmblocks convert --to parts` keeps its vision model and Q-Former."
    ]


def bare_chat(folder: Path, tokenizer: Any, wanted: str | None) -> ChatChoice:
    """The bare prompt, and answers that end where the checkpoint's own do: at a newline beside OPT, at </s> beside Vicuna."""
    if wanted is not None:
        return ChatChoice(wanted, ASKED_FOR)
    why = "the prompt of its processors: query tokens, the BOS, bare words"
    if tokenizer is None:
        return ChatChoice("blip2", why)
    ends = [tokenizer.decode([token]) for token in stored_ends(folder)]
    single = [end for end in ends if len(tokenizer.encode(end, add_special_tokens=False)) == 1]
    return ChatChoice({"name": "blip2", "end": next(iter([*single, tokenizer.eos_token or "\n"]))}, why)


def refuse_export(model: OneVision) -> list[str]:
    """Why no model is written in BLIP-2's layouts."""
    return ["BLIP-2's layouts are read only; write mmblocks' own."]


def no_export(model: OneVision, folder: Path, **options: Any) -> Path:
    """Refused: raises `ConfigError`."""
    raise ConfigError(refuse_export(model)[0])


DOOR = Layout(
    "transformers' blip-2",
    lambda folder: reads(folder, "blip-2"),
    read_blip2,
    refuse_export,
    no_export,
    run,
    clips=False,
)
