"""Presets of timm's models give the features that timm, or the vision-language model they come from, gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from safetensors.torch import save_file
from timm.models import register_model
from torch import Tensor, nn
from transformers import FastVlmConfig, FastVlmForConditionalGeneration

from mmblocks import versions
from mmblocks.components import encoders
from mmblocks.errors import CheckpointError, ConfigError

VIT = {"embed_dim": 32, "num_heads": 2}
SIZES: dict[str, dict[str, Any]] = {  # small sizes of the same classes
    "aimv2_large_336": {**VIT, "depth": 3},
    "pe_core_l_336": {**VIT, "depth": 3},
    "pe_core_g_448": {**VIT, "depth": 50},
    "pe_lang_l_448": {**VIT, "depth": 3},
    "pe_lang_g_448_tiling": {**VIT, "depth": 3},
    "c_radio_v3_h_512": {**VIT, "depth": 3},
    "c_radio_v4_so400m_512": {**VIT, "depth": 3},
    "mobileclip2_s0_256": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)},
    "mobileclip2_s3_256": {"layers": (1,) * 5, "embed_dims": (16, 32, 64, 128, 256)},
}


def shrink(preset: str, image_px: int) -> tuple[nn.Module, dict[str, Any]]:
    """A small model of the preset's class with other weights than timm draws, and the preset's settings for it."""
    settings = encoders.resolve_settings(preset)
    original, name = settings["model_name"], f"small_{preset}"

    def build(pretrained: bool = False, **given: Any) -> nn.Module:
        return timm.create_model(original, **{**SIZES[preset], **given})

    build.__name__ = name
    register_model(build)
    torch.manual_seed(0)
    view = {} if preset.startswith("mobileclip") else {"img_size": image_px}
    model = timm.create_model(name, **view).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, {**settings, "model_name": name, "image_px": image_px}


def catch_output(model: nn.Module, part: nn.Module, pixels: Tensor) -> Tensor:
    caught: list[Tensor] = []
    handle = part.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    return caught[0]


def drop_prefix(model: Any, tokens: Tensor) -> Tensor:
    return tokens[:, model.num_prefix_tokens :]


def read_original(preset: str, model: Any, pixels: Tensor) -> Tensor:
    """(views, tokens, dim) where the published model is read, found in timm's model without mmblocks."""
    if preset.startswith("mobileclip"):
        return catch_output(model, model.stages[-1], pixels).flatten(2).mT
    if preset.startswith("pe_core"):
        block = 47 - 1 if preset == "pe_core_g_448" else -2
        return drop_prefix(model, catch_output(model, model.blocks[block], pixels))
    with torch.no_grad():
        return drop_prefix(model, model.forward_features(pixels))


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_reads_the_layer_that_is_published(preset: str, tmp_path: Path) -> None:
    image_px = 64 if "mobileclip" in preset or "radio" in preset else 56
    model, settings = shrink(preset, image_px)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = encoders.build({"name": find_root(preset), **settings, "checkpoint": str(tmp_path)})
    encoder.load_pretrained()
    pixels = torch.randn(2, 3, image_px, image_px)
    with torch.no_grad():
        features = encoder.eval()(pixels)
    want = read_original(preset, model, pixels)
    torch.testing.assert_close(features.flatten(1, 2), want, rtol=1e-5, atol=1e-5)  # fp32: as timm computes it


def find_root(name: str) -> str:
    while base := encoders.find_info(name).preset_of:
        name = base
    return name


# FastVLM -------------------------------------------------------------------------------------------------------------


def fast_vlm() -> Any:
    tower = {
        "architecture": "fastvit_t8",
        "do_pooling": True,
        "hidden_size": 768,
        "model_args": {"inference_mode": True},
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    config = FastVlmConfig(
        vision_config={"model_type": "timm_wrapper", **tower},
        text_config={"model_type": "qwen2", "num_key_value_heads": 2, **text},
        image_token_index=5,
    )
    return FastVlmForConditionalGeneration(config).eval()


def fastvithd(checkpoint: Path, **sizes: Any) -> Any:
    settings = encoders.resolve_settings("fastvithd_1024")
    small = {"sizes": {**settings["sizes"], "architecture": "fastvit_t8", **sizes}, "image_px": 64, "grid": (2, 2)}
    return encoders.build({"name": "hf_vision", **settings, **small, "checkpoint": str(checkpoint)})


def test_fastvlms_tower_is_read_out_of_fastvlm(tmp_path: Path) -> None:
    model = fast_vlm()
    model.save_pretrained(tmp_path)
    encoder = fastvithd(tmp_path)
    encoder.load_pretrained()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        want = model.model.vision_tower(pixels).last_hidden_state
        torch.testing.assert_close(encoder.eval()(pixels).flatten(1, 2), want.flatten(2).mT, rtol=0, atol=0)


def test_a_tower_of_other_sizes_within_a_whole_model_is_refused(tmp_path: Path) -> None:
    fast_vlm().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="architecture=fastvit_t12, but architecture is fastvit_t8"):
        fastvithd(tmp_path, architecture="fastvit_t12").load_pretrained()


def test_a_whole_model_without_its_tower_is_refused(tmp_path: Path) -> None:
    model = fast_vlm()
    state = {key: tensor for key, tensor in model.state_dict().items() if "vision_tower" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"timm_model\.\S+: missing"):
        fastvithd(tmp_path).load_pretrained()


# Versions ------------------------------------------------------------------------------------------------------------


def test_a_model_that_an_older_timm_lacks_names_the_version_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "is_model", lambda name: False)
    monkeypatch.setattr(versions, "find_installed_version", lambda package: Version("1.0.19"))
    reason = r"timm [\d.]+ has no model 'aimv2_large_patch14_336.apple_pt'.*timm 1.0.19 is too old.*timm>=1\.0\.31"
    with pytest.raises(ConfigError, match=reason):
        encoders.build("aimv2_large_336")
