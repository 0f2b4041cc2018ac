"""transformers' vision towers as encoders of ours, and back: the same blocks, fewer of them where later ones are unused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmblocks.components import encoders
from mmblocks.encoders.clip import CLIP
from mmblocks.encoders.siglip import SigLIP
from mmblocks.encoders.vit import CONFIG_KEYS, list_state_indices
from mmblocks.model.onevision import OneVision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIZES = ("image_px", "patch_px", "dim", "depth", "heads", "mlp_dim")


@dataclass(frozen=True, slots=True)
class HFTower:
    """An encoder of ours for a model_type of transformers.

    fixed: config entries, each with the only values that are read. has_cls: whether its first token is a CLS token.
    """

    name: str
    encoder: type[CLIP] | type[SigLIP]
    fixed: Mapping[str, tuple[Any, ...]]
    settings: tuple[str, ...] = SIZES
    has_cls: bool = False


TOWERS: Mapping[str, HFTower] = {
    "clip_vision_model": HFTower(
        "clip",
        CLIP,
        {"hidden_act": ("quick_gelu", "gelu"), "layer_norm_eps": (1e-5,), "num_channels": (3,)},
        (*SIZES, "hidden_act"),
        has_cls=True,
    ),
    "siglip_vision_model": HFTower(
        "siglip", SigLIP, {"hidden_act": ("gelu_pytorch_tanh",), "layer_norm_eps": (1e-6,), "num_channels": (3,)}
    ),
}


def list_tower_reasons(config: PreTrainedConfig) -> list[str]:
    """What a vision config needs that our encoders do not compute."""
    vision = config.vision_config
    tower = TOWERS.get(vision.model_type)
    if tower is None:
        return [f"vision_config.model_type is {vision.model_type!r}; only {' and '.join(map(repr, TOWERS))} are read."]
    reasons = [
        f"vision_config.{key} is {value!r}; only {' or '.join(map(repr, fine))} is read."
        for key, fine in tower.fixed.items()
        if (value := getattr(vision, key, None)) not in fine
    ]
    if not tower.has_cls and config.vision_feature_select_strategy == "default":
        reasons.append(
            "vision_feature_select_strategy is 'default', which drops the first of SigLIP's patches; only 'full' is read."
        )
    return reasons


def make_encoder_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Our encoder for the vision tower and feature layers of a config without `list_tower_reasons`."""
    tower = TOWERS[config.vision_config.model_type]
    settings = {ours: getattr(config.vision_config, CONFIG_KEYS[ours]) for ours in tower.settings}
    if tower.has_cls:
        settings["select"] = "patch" if config.vision_feature_select_strategy == "default" else "cls_patch"
    layer = config.vision_feature_layer
    return {"name": tower.name, **settings, "layer": layer if isinstance(layer, int) else tuple(layer)}


def find_tower(model: OneVision) -> HFTower:
    """The tower of transformers that a model's encoder is; other encoders are refused before."""
    return next(tower for tower in TOWERS.values() if type(model.encoder) is tower.encoder)


def make_tower_config(model: OneVision) -> dict[str, Any]:
    """Config entries for an encoder that has a tower: only the blocks it has, features after the last of them."""
    tower = find_tower(model)
    inner = model.encoder.vision_model.config
    settings = encoders.resolve_settings(model.spec.encoder)
    layer, depth = settings["layer"], settings["depth"]
    return {
        "vision_config": type(inner).from_dict(inner.to_dict()).to_dict(),
        "vision_feature_layer": -1 if isinstance(layer, int) else list(list_state_indices(tuple(layer), depth)),
        "vision_feature_select_strategy": "default" if tower.has_cls and model.encoder.spatial else "full",
    }
