"""Encoders against transformers and timm on tiny random checkpoints made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mmblocks.components import encoders
from mmblocks.errors import CheckpointError, ConfigError

SIZES = {"image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
VISION = {
    "image_size": 30,
    "patch_size": 14,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_size": 16}
LAYERS = [-2, -1, 1]


def disturbed(model: nn.Module) -> Any:
    """Random in every tensor, so that no fresh LayerNorm or zero bias can hide a tensor that was not loaded."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def siglip_tower() -> Any:
    return disturbed(SiglipVisionModel(SiglipVisionConfig(**VISION)))


def siglip_with_text() -> Any:
    return disturbed(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)))


def clip_tower() -> Any:
    return disturbed(CLIPVisionModel(CLIPVisionConfig(**VISION)))


def clip_with_text() -> Any:
    return disturbed(CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)))


def pixels(side: int, views: int = 2) -> Tensor:
    return torch.randn(views, 3, side, side, generator=torch.Generator().manual_seed(4))


def loaded(name: str, folder: Path, **settings: Any) -> Any:
    encoder = encoders.build({"name": name, **SIZES, **settings, "checkpoint": str(folder)})
    encoder.load_pretrained()
    return encoder.eval()


@torch.no_grad()
def states(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    """transformers' hidden_states of the vision tower."""
    return getattr(model, "vision_model", model)(pixel_values=x, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("make", [siglip_tower, siglip_with_text])
def test_siglip_gives_the_hidden_states_of_transformers(make: Any, layer: int, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    encoder = loaded("siglip", tmp_path, layer=layer)
    with torch.no_grad():
        features = encoder(pixels(30))
    assert torch.equal(features.flatten(1, 2), states(model, pixels(30))[layer])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("make", [clip_tower, clip_with_text])
def test_clip_gives_the_hidden_states_of_transformers(make: Any, layer: int, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    want = states(model, pixels(30))[layer]
    patches, everything = (loaded("clip", tmp_path, layer=layer, select=s) for s in ("patch", "cls_patch"))
    with torch.no_grad():
        assert torch.equal(patches(pixels(30)).flatten(1, 2), want[:, 1:])
        assert torch.equal(everything(pixels(30)).flatten(1, 2), want)


def test_a_checkpoint_in_several_files_is_read(tmp_path: Path) -> None:
    model = siglip_tower()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert torch.equal(loaded("siglip", tmp_path)(pixels(30)).flatten(1, 2), states(model, pixels(30))[-2])


def test_a_checkpoint_in_half_precision_fills_float_weights(tmp_path: Path) -> None:
    model = siglip_tower().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    encoder = loaded("siglip", tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    got = encoder.vision_model.embeddings.patch_embedding.weight
    assert torch.equal(got, model.embeddings.patch_embedding.weight.float())


def test_tensors_that_are_not_used_need_not_be_there(tmp_path: Path) -> None:
    siglip_tower().save_pretrained(tmp_path)
    edit(tmp_path, drop=[k for k in tensors(tmp_path) if "layers.2" in k or "head." in k or "post_layernorm" in k])
    loaded("siglip", tmp_path)


def test_every_missing_or_misshapen_tensor_is_listed(tmp_path: Path) -> None:
    siglip_tower().save_pretrained(tmp_path)
    first, second = (f"encoder.layers.{i}.mlp.fc1.weight" for i in (0, 1))
    original = {key.removeprefix("vision_model."): key for key in tensors(tmp_path)}
    edit(tmp_path, drop=[original[first]], put={original[second]: torch.zeros(5, 16)})
    with pytest.raises(CheckpointError) as error:
        loaded("siglip", tmp_path)
    assert f"{first}: missing" in str(error.value)
    assert f"{second}: (5, 16) in the checkpoint, (24, 16) here" in str(error.value)
    assert "fc2" not in str(error.value)


def test_every_setting_that_disagrees_with_the_checkpoint_is_listed(tmp_path: Path) -> None:
    siglip_with_text().save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        loaded("siglip", tmp_path, dim=32, depth=4)
    assert "dim=32, but hidden_size is 16" in str(error.value)
    assert "depth=4, but num_hidden_layers is 3" in str(error.value)
    assert "mlp_dim" not in str(error.value)


def test_a_config_written_by_an_old_transformers_is_understood(tmp_path: Path) -> None:
    clip_with_text().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    old = {"torch_dtype": "float32", "dropout": 0.0, "return_dict": True, "pruned_heads": {}, "id2label": {"0": "A"}}
    config["vision_config"] |= {**old, "_name_or_path": "", "bad_words_ids": None, "transformers_version": "4.16.0"}
    file.write_text(json.dumps({**config, "vision_config_dict": None}))
    loaded("clip", tmp_path)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    siglip_tower().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a 'siglip_vision_model' model, not 'clip'"):
        loaded("clip", tmp_path)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    clip_tower().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hidden_act=gelu, but hidden_act is quick_gelu"):
        loaded("clip", tmp_path, hidden_act="gelu")


def test_an_absent_or_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere' cannot be read"):
        loaded("siglip", tmp_path / "nowhere")
    siglip_tower().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        loaded("siglip", tmp_path)


def test_weights_are_not_read_into_the_meta_device(tmp_path: Path) -> None:
    siglip_tower().save_pretrained(tmp_path)
    with torch.device("meta"):
        encoder = encoders.build({"name": "siglip", **SIZES, "checkpoint": str(tmp_path)})
    with pytest.raises(ConfigError, match="built on the meta device"):
        encoder.load_pretrained()


def timm_model(name: str = "test_vit", image_px: int = 32) -> Any:
    torch.manual_seed(5)
    return disturbed(timm.create_model(name, pretrained=False, img_size=image_px))


def timm_encoder(checkpoint: Path | None, name: str = "test_vit", **settings: Any) -> Any:
    spec = {"name": "timm_vit", "model_name": name, "image_px": 32, **settings}
    encoder = encoders.build({**spec, "checkpoint": str(checkpoint)})
    encoder.load_pretrained()
    return encoder.eval()


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "vit_tiny_patch16_224"])
def test_timm_features_are_those_of_forward_features(name: str, tmp_path: Path) -> None:
    model = timm_model(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = timm_encoder(tmp_path, name)
    with torch.no_grad():
        want = model.forward_features(pixels(32))[:, model.num_prefix_tokens :]
        assert torch.equal(encoder(pixels(32)).flatten(1, 2), want)


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("norm", [True, False])
def test_timm_blocks_are_counted_as_hidden_states_are(layer: int, norm: bool, tmp_path: Path) -> None:
    model = timm_model()
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    encoder = timm_encoder(file, layer=layer, norm=norm)
    block = (layer if layer < 0 else layer - 1) % len(model.blocks)
    with torch.no_grad():
        (want,) = model.forward_intermediates(pixels(32), indices=[block], norm=norm, intermediates_only=True)
        assert torch.equal(encoder(pixels(32)), want.permute(0, 2, 3, 1))


def test_timm_rotary_models_work(tmp_path: Path) -> None:
    model = timm_model("eva02_tiny_patch14_224", image_px=28)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = timm_encoder(tmp_path, "eva02_tiny_patch14_224", image_px=28)
    with torch.no_grad():
        want = model.forward_features(pixels(28))[:, model.num_prefix_tokens :]
        assert torch.equal(encoder(pixels(28)).flatten(1, 2), want)


def test_timm_weights_without_their_classifier_are_enough(tmp_path: Path) -> None:
    model = timm_model()
    save_file({k: v for k, v in model.state_dict().items() if "head" not in k}, tmp_path / "model.safetensors")
    timm_encoder(tmp_path)


def test_timm_weights_for_another_view_are_refused(tmp_path: Path) -> None:
    save_file(timm_model(image_px=48).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"pos_embed: \(1, 10, 64\) in the checkpoint, \(1, 5, 64\) here"):
        timm_encoder(tmp_path)


def test_a_timm_folder_must_hold_one_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^encoder 'timm_vit': {tmp_path} holds 0 \.safetensors files"):
        timm_encoder(tmp_path)


def test_a_pretrained_timm_model_takes_timms_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_model()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> Any:
        overlay = {"file": str(tmp_path / "model.safetensors")}
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    encoder = encoders.build("timm_vit", model_name="test_vit", image_px=32, checkpoint="pretrained")
    encoder.load_pretrained()
    with torch.no_grad():
        want = model.forward_features(pixels(32))[:, model.num_prefix_tokens :]
        assert torch.equal(encoder.eval()(pixels(32)).flatten(1, 2), want)


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def edit(folder: Path, drop: list[str], put: dict[str, Tensor] | None = None) -> None:
    kept = {k: v for k, v in tensors(folder).items() if k not in drop}
    save_file({**kept, **(put or {})}, folder / "model.safetensors", metadata={"format": "pt"})
