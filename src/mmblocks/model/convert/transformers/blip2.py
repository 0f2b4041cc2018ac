"""transformers' `blip-2`, import only: vision model, Q-Former and language projection with a causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmblocks.errors import ConfigError
from mmblocks.model.convert import keys
from mmblocks.model.convert.chat import ASKED_FOR, ChatChoice
from mmblocks.model.convert.text import (
    build_from_tensors,
    make_backbone_settings,
    read_checkpoint_tokenizer,
    read_end_tokens,
    refuse_conversion,
)
from mmblocks.model.convert.transformers.families import HFLayout
from mmblocks.model.convert.transformers.reading import (
    BICUBIC,
    count_max_frames,
    list_fixed_reasons,
    list_processor_reasons,
    read_family_config,
    read_image_settings,
)
from mmblocks.model.convert.weights import MatchedTensors, open_tensors
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

VISION = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
QFORMER = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}


class Blip2Family(HFLayout):
    """BLIP-2 with a causal language model (OPT).

    With an encoder-decoder (T5) it is refused; `import_vision_parts` reads what is before the language model.
    """

    model_type = "blip-2"
    about = "transformers' blip-2"
    supports_video = False

    def make_projector_settings(self, config: PreTrainedConfig, folder: Path) -> dict[str, Any]:
        """The Q-Former as settings of our projector."""
        return {"name": "qformer", **make_qformer_settings(config)}

    def find_unused_tensors(self, config: PreTrainedConfig) -> Mapping[str, str]:
        """Patterns of tensor names that may be left over, and why."""
        return {}

    def read_spec(self, folder: Path, template: str | None = None) -> ModelSpec:
        return self._read_settings(folder, template)[0]

    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        spec, config, chat = self._read_settings(folder, template)
        layouts, unused = {self.model_type: keys.BLIP2}, self.find_unused_tensors(config)
        return build_from_tensors(spec, config.text_config, open_tensors(folder), layouts, dtype, folder, chat, unused)

    def _read_settings(self, folder: Path, template: str | None) -> tuple[ModelSpec, PreTrainedConfig, ChatChoice]:
        config = read_family_config(folder, self.model_type)
        tokenizer = read_checkpoint_tokenizer(folder)
        chat = choose_bare_prompt(folder, tokenizer, template)
        reasons = list_vision_reasons(config, folder)
        if not config.use_decoder_only_language_model:
            reasons.append(
                f"its language model is {config.text_config.model_type!r}, an encoder-decoder, which cannot be a backbone "
                "here; `mmblocks convert --to parts` keeps its vision model and Q-Former."
            )
        refuse_conversion(folder, reasons)
        placeholder = config.image_token_index if config.image_token_index is not None else 0
        video = {"name": "frames", "newline": "none", "max_frames": count_max_frames(config, config.num_query_tokens)}
        spec = ModelSpec.from_dict(
            {
                "encoder": make_encoder_settings(config),
                "projector": self.make_projector_settings(config, folder),
                "pooling": "none",
                "tokenizer": {"image": "square", "multi_image": "square", "video": video},
                "backbone": make_backbone_settings(config.text_config, folder, tokenizer, placeholder),
                "template": chat.spec,
            }
        )
        return spec, config, chat

    def reasons_against_export(self, model: OneVision) -> list[str]:
        return ["BLIP-2's layouts are read only; write mmblocks' own."]

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        raise ConfigError(self.reasons_against_export(model)[0])


def make_encoder_settings(config: PreTrainedConfig) -> dict[str, Any]:
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


def make_qformer_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The Q-Former's sizes as settings of our `qformer`."""
    qformer = config.qformer_config
    return {
        "queries": config.num_query_tokens,
        "dim": qformer.hidden_size,
        "depth": qformer.num_hidden_layers,
        "heads": qformer.num_attention_heads,
        "mlp_dim": qformer.intermediate_size,
        "cross_every": qformer.cross_attention_frequency,
    }


def list_vision_reasons(config: PreTrainedConfig, folder: Path) -> list[str]:
    """What the parts before the language model need that ours do not compute."""
    vision, side = config.vision_config, config.vision_config.image_size
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    reasons = [f"vision_config.{reason}" for reason in list_fixed_reasons(vision, VISION)]
    reasons += [f"qformer_config.{reason}" for reason in list_fixed_reasons(config.qformer_config, QFORMER)]
    image = {**colours, "resample": BICUBIC, "size": {"height": side, "width": side}}
    return reasons + list_processor_reasons(read_image_settings(folder), image)


def choose_bare_prompt(folder: Path, tokenizer: PreTrainedTokenizerBase | None, template: str | None) -> ChatChoice:
    """The bare prompt, and answers that end where the checkpoint's do: at a newline with OPT, at </s> with Vicuna."""
    if template is not None:
        return ChatChoice(template, ASKED_FOR)
    why = "the prompt of its processors: query tokens, the BOS, the bare text"
    if tokenizer is None:
        return ChatChoice("blip2", why)
    ends = [str(tokenizer.decode([token])) for token in read_end_tokens(folder)]
    single = [end for end in ends if len(tokenizer.encode(end, add_special_tokens=False)) == 1]
    return ChatChoice({"name": "blip2", "end": next(iter([*single, tokenizer.eos_token or "\n"]))}, why)


LAYOUT = Blip2Family()
