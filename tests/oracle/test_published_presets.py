"""Every preset has the numbers that its model was published with; `published_presets.json` states them with their sources."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmblocks.components import backbones, encoders
from mmblocks.registry import Registry

TABLE = json.loads((Path(__file__).parent / "published_presets.json").read_text(encoding="utf-8"))
ENCODERS, BACKBONES = TABLE["encoders"], TABLE["backbones"]
OF_TINYWORLD = {"tiny_conv_48"}  # published nowhere else
WHOLE_CONFIGS = ("copy", "base")  # entries that these leave out have transformers' defaults; other sources state a part
NOT_A_SIZE = {
    *("architectures", "dtype", "transformers_version", "use_cache", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    "max_window_layers",  # without effect, since use_sliding_window is false wherever it is stated
}


def list_presets(registry: Registry[Any]) -> set[str]:
    return {name for name in registry if registry.find_info(name).preset_of}


def find_root(name: str) -> str:
    while base := encoders.find_info(name).preset_of:
        name = base
    return name


@cache
def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return encoders.build(name)


def test_every_preset_has_a_row_with_its_source() -> None:
    assert list_presets(encoders) - OF_TINYWORLD == set(ENCODERS)
    assert list_presets(backbones) == set(BACKBONES)
    for name, row in {**ENCODERS, **BACKBONES}.items():
        assert row["sources"], name
        assert row["kind"] in TABLE["kinds"], name
        assert ("layer_source" in row) == ("layer" in row.get("numbers", ())), name


# Language models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_language_model_has_the_published_config(name: str) -> None:
    from transformers import AutoConfig

    row, stated = BACKBONES[name], dict(BACKBONES[name]["config"])
    with torch.device("meta"):
        backbone = backbones.build(name)
    assert backbone.checkpoint == row["model"]
    ours = backbone.config.to_dict()
    published = AutoConfig.for_model(stated.pop("model_type"), **stated).to_dict()
    compared = set(ours) | set(published) if row["kind"] in WHOLE_CONFIGS else {*stated, "model_type"}
    if "rope_theta" in stated:  # where transformers keeps it
        compared = compared - {"rope_theta", "rope_scaling", "rope_local_base_freq"} | {"rope_parameters"}
    differing = {key for key in compared - NOT_A_SIZE if ours.get(key) != published.get(key)}
    assert not {key: (ours.get(key), published.get(key)) for key in differing}


# Vision encoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_an_encoder_has_the_published_numbers(name: str) -> None:
    published = ENCODERS[name]["numbers"]
    measured = measure(name)
    assert {key: measured.get(key, "not measured") for key in published} == published


@pytest.mark.parametrize(
    "name", sorted(name for name in ENCODERS if "/" in str(encoders.resolve_settings(name).get("checkpoint")))
)
def test_an_encoder_reads_the_weights_of_the_model_in_its_row(name: str) -> None:
    assert encoders.resolve_settings(name)["checkpoint"] == ENCODERS[name]["model"]


def measure(name: str) -> dict[str, Any]:
    """The numbers of a preset as it is built, on the meta device and without weights."""
    encoder, settings = on_meta(name), encoders.resolve_settings(name)
    facts = {
        "image_px": encoder.view_px.height,
        "grid": list(encoder.grid),
        "pixel_mean": list(encoder.pixel_mean),
        "pixel_std": list(encoder.pixel_std),
        "squash": encoder.squash,
        "layer": settings.get("layer"),
    }
    root = find_root(name)
    if root in ("fused", "interleaved", "s2"):
        given = {key: settings.get(key) for key in ("members", "member", "scales")}
        return {**facts, **json.loads(json.dumps(given))}
    if root == "timm_vit":
        return {**facts, **measure_trunk(encoder, settings)}
    if root == "timm_features":
        return {**facts, **measure_stages(encoder.trunk)}
    return {**facts, **measure_tower(encoder, settings)}


def measure_tower(encoder: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Of an encoder that is made of a tower of transformers."""
    if (trunk := getattr(getattr(encoder, "tower", None), "timm_model", None)) is not None:
        return {"dim": encoder.dim, **measure_stages(trunk)}
    config: Any = next(module.config for module in encoder.modules() if hasattr(module, "config"))
    extra = {"prefix_tokens": settings.get("prefix_tokens"), "registers": settings.get("registers")}
    if hasattr(config, "depths"):
        return {"stage_dims": list(config.hidden_sizes), "stage_depths": list(config.depths), **extra}
    return {
        "patch_px": first(encoder, nn.Conv2d).kernel_size[0],
        "dim": config.hidden_size,
        "depth": settings.get("depth", config.num_hidden_layers),
        "heads": config.num_attention_heads,
        "mlp_dim": measure_mlp(encoder),
        **extra,
    }


def measure_trunk(encoder: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Of a vision transformer of timm. The encoder leaves out the blocks behind its layer, so the model is built whole."""
    import timm

    trunk = encoder.trunk
    if settings["layer"] != -1:
        with torch.device("meta"):
            trunk = timm.create_model(encoder.model_name)
    patch = getattr(trunk.patch_embed, "patch_size", None)
    return {
        "patch_px": patch and patch[0],
        "dim": trunk.embed_dim,
        "depth": len(trunk.blocks),
        "heads": trunk.blocks[0].attn.num_heads,
        "mlp_dim": measure_mlp(trunk),
        "prefix_tokens": trunk.num_prefix_tokens,
    }


def measure_stages(trunk: Any) -> dict[str, Any]:
    """Of a model of timm whose last stage is used."""
    return {
        "stage_dims": [stage["num_chs"] for stage in trunk.feature_info],
        "stage_depths": [len(stage.blocks) for stage in trunk.stages],
    }


def measure_mlp(module: nn.Module) -> int:
    """The hidden width of the first block's MLP: its last linear map reads it, with a gate or without."""
    mlp: Any = next(m.mlp for m in module.modules() if hasattr(m, "mlp"))
    return [m for m in mlp.modules() if isinstance(m, nn.Linear)][-1].in_features


def first(module: nn.Module, kind: type) -> Any:
    return next(m for m in module.modules() if isinstance(m, kind))
