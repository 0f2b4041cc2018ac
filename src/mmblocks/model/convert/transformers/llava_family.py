"""What the LLaVAs of transformers share: a vision tower, a two-layer MLP and a causal language model, in both directions."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmblocks.errors import ConfigError
from mmblocks.model.convert import keys
from mmblocks.model.convert.chat import ChatChoice, choose_chat_template
from mmblocks.model.convert.export_text import finish_tokenizer, write_generation_config
from mmblocks.model.convert.text import (
    build_from_tensors,
    list_tokenizer_reasons,
    make_backbone_settings,
    read_checkpoint_tokenizer,
    refuse_conversion,
)
from mmblocks.model.convert.transformers.export import collect_tensors, write_config, write_weights
from mmblocks.model.convert.transformers.families import HFLayout
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.convert.transformers.reading import (
    BICUBIC,
    ImageSettings,
    list_fixed_reasons,
    list_processor_reasons,
    read_family_config,
    read_image_settings,
)
from mmblocks.model.convert.transformers.tokens import list_tiling_reasons
from mmblocks.model.convert.transformers.towers import TOWERS, list_tower_reasons, make_encoder_settings
from mmblocks.model.convert.weights import MatchedTensors, open_tensors
from mmblocks.model.onevision import OneVision
from mmblocks.model.quantized import require_no_quantized_layer
from mmblocks.model.spec import ModelSpec
from mmblocks.projectors.mlp import MLP
from mmblocks.storage import replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

log = logging.getLogger(__name__)


class LlavaFamily(HFLayout):
    """One LLaVA of transformers; a subclass has its image tokens, its config entries and its processor.

    has_newline: whether it has the learned token `image_newline`. towers: vision towers it is written with.
    """

    has_newline = True
    towers: tuple[str, ...] = ("clip_vision_model", "siglip_vision_model")

    @property
    def visual_tokens(self) -> tuple[str, ...]:
        """The texts that its processor replaces by visual tokens."""
        return ("<image>", "<video>") if self.supports_video else ("<image>",)

    # What a subclass says -------------------------------------------------------------------------------------------

    def list_config_reasons(self, config: PreTrainedConfig) -> list[str]:
        """What its config asks for that we do not compute."""
        return []

    def list_image_reasons(self, config: PreTrainedConfig, image: ImageSettings) -> list[str]:
        """What its image processor does that we do not."""
        return list_tiling_reasons(config, image)

    @abstractmethod
    def make_tokenizer_settings(self, config: PreTrainedConfig, image: ImageSettings) -> dict[str, Any]:
        """Our pooling and visual tokenizers for a config."""

    @abstractmethod
    def list_tokenizer_reasons(self, model: OneVision) -> list[str]:
        """What it cannot express of our visual tokenizers."""

    @abstractmethod
    def make_config_entries(self, model: OneVision) -> dict[str, Any]:
        """Its own config entries for a model."""

    @abstractmethod
    def make_processor(self, model: OneVision, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
        """Its processor for a model, with a text tokenizer that has its visual tokens."""

    # Import ---------------------------------------------------------------------------------------------------------

    def read_spec(self, folder: Path, template: str | None = None) -> ModelSpec:
        return self._read_settings(folder, template)[0]

    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        spec, config, chat = self._read_settings(folder, template)
        return build_from_tensors(spec, config.text_config, open_tensors(folder), keys.HF_LAYOUTS, dtype, folder, chat)

    def _read_settings(self, folder: Path, template: str | None) -> tuple[ModelSpec, PreTrainedConfig, ChatChoice]:
        config = read_family_config(folder, self.model_type)
        tokenizer = read_checkpoint_tokenizer(folder)
        chat = choose_chat_template(folder, tokenizer, template)
        return self._make_spec(config, folder, tokenizer, chat), config, chat

    def _make_spec(
        self, config: PreTrainedConfig, folder: Path, tokenizer: PreTrainedTokenizerBase | None, chat: ChatChoice
    ) -> ModelSpec:
        image, tower = read_image_settings(folder), TOWERS.get(config.vision_config.model_type)
        ids = {"<image>": config.image_token_index}
        if self.supports_video:
            ids["<video>"] = config.video_token_index
        pixel_reasons = []
        if tower is not None:
            mean, std = list(tower.encoder.pixel_mean), list(tower.encoder.pixel_std)
            fixed = {"image_mean": mean, "image_std": std, "resample": BICUBIC}
            pixel_reasons = list_processor_reasons(image, fixed)
        refuse_conversion(
            folder,
            [
                *list_tower_reasons(config),
                *list_fixed_reasons(config, {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}),
                *self.list_config_reasons(config),
                *pixel_reasons,
                *self.list_image_reasons(config, image),
                *list_tokenizer_reasons(tokenizer, ids, config.text_config.vocab_size, chat),
            ],
        )
        return ModelSpec.from_dict(
            {
                "encoder": make_encoder_settings(config),
                "projector": {"name": "mlp", "depth": 2},
                **self.make_tokenizer_settings(config, image),
                "backbone": make_backbone_settings(config.text_config, folder, tokenizer, config.image_token_index),
                "template": chat.spec,
            }
        )

    # Export ---------------------------------------------------------------------------------------------------------

    def reasons_against_export(self, model: OneVision) -> list[str]:
        reasons = []
        if not isinstance(model.encoder, tuple(TOWERS[tower].encoder for tower in self.towers)):
            names = " or ".join(TOWERS[tower].name for tower in self.towers)
            reasons.append(f"encoder: {type(model.encoder).__name__}; {self.model_type} is written with {names} only.")
        if not is_two_layer_mlp(model.projector):
            reasons.append(
                f"projector: {self.model_type} has two linear layers with a GELU between them ('mlp', depth=2)."
            )
        reasons += self.list_tokenizer_reasons(model)
        expected, learned = {"newline"} if self.has_newline else set(), set(model.learned_tokens.keys())
        reasons += [f"learned_tokens: {self.model_type} has no {name!r}." for name in sorted(learned - expected)]
        reasons += [
            f"learned_tokens: {self.model_type} has {name!r}, which this model has not learned."
            for name in expected - learned
        ]
        return reasons + self._list_text_reasons(model)

    def _list_text_reasons(self, model: OneVision) -> list[str]:
        reasons, template, backbone = [], model.template, model.backbone
        if to_jinja(template) is None:
            reasons.append(
                f"template: {type(template).__name__} has no form in transformers; use one such as qwen_2 or vicuna_v1."
            )
        foreign = [name for name in backbone.state_dict() if not name.startswith(("lm.model.", "lm.lm_head."))]
        if foreign:
            reasons.append(
                f"backbone: {backbone.config.model_type!r} names its tensors {foreign[0]!r}, unlike Qwen or Llama."
            )
        if backbone.tokenizer_source is None:
            return [*reasons, "backbone: no text tokenizer; set backbone.text_tokenizer, a processor needs one."]
        tokenizer = self._add_visual_tokens(model)
        beyond = [t for t in self.visual_tokens if tokenizer.convert_tokens_to_ids(t) >= backbone.vocab_size]
        if beyond:
            reasons.append(
                f"backbone: its {backbone.vocab_size} token embeddings leave no room for {' and '.join(beyond)}; "
                "use a larger vocabulary."
            )
        return reasons

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        require_no_quantized_layer(model, "an export")
        if reasons := self.reasons_against_export(model):
            listed = "\n".join(f"  - {reason}" for reason in reasons)
            raise ConfigError(f"transformers' {self.model_type} cannot express this model:\n{listed}")
        if not self.supports_video:
            log.warning("transformers' %s takes no videos: tokenizer.video is left out.", self.model_type)
        tokenizer = self._add_visual_tokens(model)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in self.visual_tokens}
        entries = {f"{token.strip('<>')}_token_index": number for token, number in ids.items()}
        with replace_folder(folder) as fresh:
            write_config(self.model_type, model, {**entries, **self.make_config_entries(model)}, fresh, dtype)
            write_weights(collect_tensors(model, keys.HUB, dtype, add_final_norm=True), fresh, max_shard_size)
            write_generation_config(model, fresh)
            self.make_processor(model, tokenizer).save_pretrained(fresh)
            finish_tokenizer(model, fresh)
        return folder

    def _add_visual_tokens(self, model: OneVision) -> PreTrainedTokenizerBase:
        """A copy of the text tokenizer in which <image> (and <video>) are special tokens."""
        from transformers import AddedToken

        tokenizer = copy.deepcopy(model.backbone.text_tokenizer)
        tokens = [AddedToken(token, special=True, normalized=False) for token in self.visual_tokens]
        tokenizer.add_tokens(tokens, special_tokens=True)
        return tokenizer


def is_two_layer_mlp(projector: nn.Module) -> bool:
    """Whether a projector is two linear layers with biases and an exact GELU between them."""
    match projector:
        case MLP(body=nn.Sequential() as body) if len(body) == 2:
            layers = (body[0], projector.head)
            is_exact = isinstance(body[1], nn.GELU) and body[1].approximate == "none"
            return is_exact and all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers)
    return False
