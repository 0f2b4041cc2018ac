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
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mmblocks.components import encoders
from mmblocks.errors import CheckpointError, ConfigError

SIZES = {"image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
VISION: dict[str, Any] = {
    "image_size": 30,
    "patch_size": 14,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 20,
}
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


@pytest.mark.parametrize("layer", [(1, -1), (-2, 3, 1), (0, 2)])
@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_several_layers_stand_side_by_side_in_the_order_written(
    name: str, layer: tuple[int, ...], tmp_path: Path
) -> None:
    model = {"siglip": siglip_tower, "clip": clip_tower}[name]()
    model.save_pretrained(tmp_path)
    encoder = loaded(name, tmp_path, layer=layer)
    assert encoder.dim == 16 * len(layer)
    with torch.no_grad():
        features = encoder(pixels(30)).flatten(1, 2)
    hidden = states(model, pixels(30))
    patches = slice(1, None) if name == "clip" else slice(None)
    assert torch.equal(features, torch.cat([hidden[n] for n in layer], dim=-1)[:, patches])


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


@pytest.mark.parametrize(("name", "family"), [("clip", "clip_vision_model"), ("siglip", "siglip_vision_model")])
def test_a_tower_is_read_out_of_a_vision_language_model(name: str, family: str, tmp_path: Path) -> None:
    text = {"model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlavaConfig(vision_config={"model_type": family, **VISION}, text_config={**text, **heads})
    model = disturbed(LlavaForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    encoder = loaded(name, tmp_path, layer=-1)
    with torch.no_grad():
        want = model.model.vision_tower(pixels(30), output_hidden_states=True).hidden_states[-1]
        assert torch.equal(encoder(pixels(30)).flatten(1, 2), want[:, 1:] if name == "clip" else want)


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


DINO_SIZES: dict[str, Any] = {"patch_px": 14, "dim": 16, "depth": 3, "heads": 2}
DINO: dict[str, Any] = {"patch_size": 14, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def dinov2_tower(registers: int, **settings: Any) -> Any:
    config = {**DINO, "image_size": 42, **settings}
    if registers:
        return disturbed(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config, num_register_tokens=registers)))
    return disturbed(Dinov2Model(Dinov2Config(**config)))


def dinov2(folder: Path, **settings: Any) -> Any:
    encoder = encoders.build({"name": "dinov2", **DINO_SIZES, "trained_px": 42, **settings, "checkpoint": str(folder)})
    encoder.load_pretrained()
    return encoder.eval()


@pytest.mark.parametrize("image_px", [42, 28, 71])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_gives_the_last_hidden_state_of_transformers(registers: int, image_px: int, tmp_path: Path) -> None:
    model = dinov2_tower(registers)
    model.save_pretrained(tmp_path)
    encoder = dinov2(tmp_path, registers=registers, image_px=image_px)
    with torch.no_grad():
        want = model(pixels(image_px)).last_hidden_state[:, 1 + registers :]
        assert torch.equal(encoder(pixels(image_px)).flatten(1, 2), want)


@pytest.mark.parametrize("layer", [-2, 1, (1, -1)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_gives_the_hidden_states_of_transformers(
    registers: int, norm: bool, layer: int | tuple[int, ...], tmp_path: Path
) -> None:
    model = dinov2_tower(registers)
    model.save_pretrained(tmp_path)
    encoder = dinov2(tmp_path, registers=registers, image_px=42, layer=layer, norm=norm)
    with torch.no_grad():
        hidden = model(pixels(42), output_hidden_states=True).hidden_states
        wanted = [hidden[n] for n in ((layer,) if isinstance(layer, int) else layer)]
        want = torch.cat([model.layernorm(state) if norm else state for state in wanted], dim=-1)
        assert torch.equal(encoder(pixels(42)).flatten(1, 2), want[:, 1 + registers :])


def test_dinov2_giants_gated_mlp_works(tmp_path: Path) -> None:
    model = dinov2_tower(0, use_swiglu_ffn=True)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        features = dinov2(tmp_path, image_px=42, swiglu=True)(pixels(42))
        assert torch.equal(features.flatten(1, 2), model(pixels(42)).last_hidden_state[:, 1:])


def test_dinov2_and_its_kin_with_registers_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    dinov2_tower(4).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a 'dinov2_with_registers' model, not 'dinov2'"):
        dinov2(tmp_path)
    with pytest.raises(ConfigError, match=r"trained_px=518, but image_size is 42(.|\n)*registers=2, but num_.* is 4"):
        dinov2(tmp_path, registers=2, trained_px=518)


def dinov3_tower(**settings: Any) -> Any:
    sizes = {**DINO, "patch_size": 16, "intermediate_size": 24, "num_register_tokens": 4, **settings}
    return disturbed(DINOv3ViTModel(DINOv3ViTConfig(**sizes)))


def dinov3(folder: Path, **settings: Any) -> Any:
    sizes = {**DINO_SIZES, "patch_px": 16, "mlp_dim": 24, "image_px": 48}
    encoder = encoders.build({"name": "dinov3", **sizes, **settings, "checkpoint": str(folder)})
    encoder.load_pretrained()
    return encoder.eval()


@pytest.mark.parametrize("image_px", [48, 70])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"registers": 0}, {"num_register_tokens": 0}),
        ({"gated": True}, {"use_gated_mlp": True, "hidden_act": "silu"}),
        ({"qv_bias": False}, {"query_bias": False, "value_bias": False}),
    ],
)
def test_dinov3_gives_the_last_hidden_state_of_transformers(
    ours: dict[str, Any], theirs: dict[str, Any], image_px: int, tmp_path: Path
) -> None:
    model = dinov3_tower(**theirs)
    model.save_pretrained(tmp_path)
    encoder = dinov3(tmp_path, image_px=image_px, **ours)
    with torch.no_grad():
        want = model(pixels(image_px)).last_hidden_state[:, 1 + model.config.num_register_tokens :]
        assert torch.equal(encoder(pixels(image_px)).flatten(1, 2), want)


@pytest.mark.parametrize("layer", [-2, 1, (1, -1)])
@pytest.mark.parametrize("norm", [True, False])
def test_dinov3_gives_the_hidden_states_of_transformers(
    norm: bool, layer: int | tuple[int, ...], tmp_path: Path
) -> None:
    model = dinov3_tower()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        hidden = model(pixels(48), output_hidden_states=True).hidden_states
        wanted = [hidden[n] for n in ((layer,) if isinstance(layer, int) else layer)]
        want = torch.cat([model.norm(state) if norm else state for state in wanted], dim=-1)
        features = dinov3(tmp_path, layer=layer, norm=norm)(pixels(48))
    assert torch.equal(features.flatten(1, 2), want[:, 5:])


def test_dinov3_does_not_stretch_positions_in_training(tmp_path: Path) -> None:
    dinov3_tower().save_pretrained(tmp_path)
    encoder = dinov3(tmp_path)
    with torch.no_grad():
        assert torch.equal(encoder.train()(pixels(48)), encoder.eval()(pixels(48)))


GREY = {"pixel_mean": [0.5] * 3, "pixel_std": [0.5] * 3}
FAMILIES: dict[str, tuple[dict[str, Any], int, list[int], int]] = {  # sizes, view, grid, prefix tokens
    "vit": ({**VISION, "image_size": 28}, 28, [2, 2], 1),
    "dinov2": ({**DINO, "image_size": 42}, 56, [4, 4], 1),
    "siglip_vision_model": (VISION, 30, [2, 2], 0),
    "mlcd_vision_model": ({**VISION, "image_size": 28}, 28, [2, 2], 1),
    "dinov3_convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1]}, 32, [4, 4], 1),
    "swin": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        32,
        [4, 4],
        0,
    ),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, 32, [4, 4], 0),
}


def hf_model(family: str) -> Any:
    torch.manual_seed(6)
    return disturbed(AutoModel.from_config(AutoConfig.for_model(family, **FAMILIES[family][0])))


def hf_vision(like: str, **settings: Any) -> Any:
    _, image_px, grid, prefix = FAMILIES[like]
    facts = {"image_px": image_px, "grid": grid, "prefix_tokens": prefix, **GREY}
    return encoders.build({"name": "hf_vision", **facts, **settings})


@pytest.mark.parametrize("declared", ["by family and sizes", "by the checkpoint"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_tower_of_transformers_gives_its_last_hidden_state(family: str, declared: str, tmp_path: Path) -> None:
    model = hf_model(family)
    model.save_pretrained(tmp_path)
    sizes = {"family": family, "sizes": FAMILIES[family][0]} if declared == "by family and sizes" else {}
    encoder = hf_vision(family, checkpoint=str(tmp_path), **sizes)
    encoder.load_pretrained()
    x = pixels(encoder.view_px.height)
    with torch.no_grad():
        want = model(x).last_hidden_state
        want = want.flatten(2).mT if want.ndim == 4 else want[:, FAMILIES[family][3] :]
        # in training mode, too: batch normalisation is held
        assert torch.equal(encoder.train()(x).flatten(1, 2), want)
    assert encoder.dim == want.shape[-1]


@pytest.mark.parametrize("layer", [-1, -2, (1, -1)])
def test_any_towers_layers_are_its_hidden_states(layer: int | tuple[int, ...], tmp_path: Path) -> None:
    model = hf_model("vit")
    model.save_pretrained(tmp_path)
    encoder = hf_vision("vit", checkpoint=str(tmp_path), layer=layer)
    encoder.load_pretrained()
    with torch.no_grad():
        hidden = model(pixels(28), output_hidden_states=True).hidden_states
        want = torch.cat([hidden[n] for n in ((layer,) if isinstance(layer, int) else layer)], dim=-1)
        assert torch.equal(encoder.eval()(pixels(28)).flatten(1, 2), want[:, 1:])


def test_the_vision_tower_of_a_model_with_text_is_found(tmp_path: Path) -> None:
    model = siglip_with_text()
    model.save_pretrained(tmp_path)
    encoder = hf_vision("siglip_vision_model", checkpoint=str(tmp_path))
    encoder.load_pretrained()
    with torch.no_grad():
        want = model.vision_model(pixels(30)).last_hidden_state
        assert torch.equal(encoder.eval()(pixels(30)).flatten(1, 2), want)


def test_towers_whose_sizes_or_colours_disagree_with_the_checkpoint_are_refused(tmp_path: Path) -> None:
    hf_model("vit").save_pretrained(tmp_path)
    sizes = {**FAMILIES["vit"][0], "hidden_size": 32, "num_hidden_layers": 2}
    with pytest.raises(ConfigError, match=r"num_hidden_layers=2, but num_hidden_layers is 3") as error:
        hf_vision("vit", family="vit", sizes=sizes, checkpoint=str(tmp_path)).load_pretrained()
    assert "hidden_size=32, but hidden_size is 16" in str(error.value)
    stated = {"image_mean": [0.5, 0.4, 0.5], "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(ConfigError, match=r"pixel_mean=\[0.5, 0.5, 0.5\], but image_mean is \[0.5, 0.4, 0.5\]"):
        hf_vision("vit", checkpoint=str(tmp_path)).load_pretrained()


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


def test_timm_blocks_stand_side_by_side_in_the_order_written(tmp_path: Path) -> None:
    model = timm_model()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = timm_encoder(tmp_path, layer=[3, 1, -1])
    with torch.no_grad():
        first, third, last = model.forward_intermediates(
            pixels(32), indices=[0, 2, len(model.blocks) - 1], norm=True, intermediates_only=True
        )
        assert torch.equal(encoder(pixels(32)), torch.cat([third, first, last], dim=1).permute(0, 2, 3, 1))


def test_timm_rotary_models_built_on_meta_work_once_weights_are_given() -> None:
    spec = {"name": "timm_vit", "model_name": "eva02_tiny_patch14_224", "image_px": 28, "layer": 2}
    encoder = encoders.build(spec).eval()
    with torch.device("meta"):
        blueprint = encoders.build(spec).eval()
    blueprint.load_state_dict(encoder.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(blueprint(pixels(28)), encoder(pixels(28)))


STAGED = {"test_convnext": 64, "test_resnet": 64, "swin_tiny_patch4_window7_224": 224}  # views


def staged(name: str) -> Any:
    torch.manual_seed(7)
    return disturbed(timm.create_model(name, pretrained=False))


def stage_of(name: str, folder: Path, **settings: Any) -> Any:
    spec = {"name": "timm_features", "model_name": name, "image_px": STAGED[name], **settings}
    encoder = encoders.build({**spec, "checkpoint": str(folder)})
    encoder.load_pretrained()
    return encoder


@pytest.mark.parametrize("name", STAGED)
def test_the_last_stage_of_timm_models_is_that_of_forward_features(name: str, tmp_path: Path) -> None:
    model = staged(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = stage_of(name, tmp_path)
    x = pixels(STAGED[name])
    with torch.no_grad():
        want = model.forward_features(x)
        features = encoder.train()(x)  # in training mode, too: batch normalisation is held
    assert features.shape == (2, *encoder.grid, encoder.dim)
    assert torch.equal(features, want if want.shape[-1] == encoder.dim else want.permute(0, 2, 3, 1))


@pytest.mark.parametrize("stage", [0, 2, -2])
@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_earlier_stages_of_timm_models_are_those_of_features_only(name: str, stage: int, tmp_path: Path) -> None:
    model = staged(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = stage_of(name, tmp_path, stage=stage).eval()
    pyramid = timm.create_model(name, pretrained=False, features_only=True).eval()
    pyramid.load_state_dict(
        {k.replace("stages.", "stages_").replace("stem.", "stem_"): v for k, v in model.state_dict().items()},
        strict=False,
    )
    assert set(pyramid.state_dict()) <= {
        k.replace("stages.", "stages_").replace("stem.", "stem_") for k in model.state_dict()
    }
    with torch.no_grad():
        assert torch.equal(encoder(pixels(64)), pyramid(pixels(64))[stage].permute(0, 2, 3, 1))


def test_later_stages_need_not_be_in_the_file(tmp_path: Path) -> None:
    kept = {k: v for k, v in staged("test_convnext").state_dict().items() if k.startswith(("stem", "stages.0"))}
    save_file(kept, tmp_path / "model.safetensors")
    stage_of("test_convnext", tmp_path, stage=0)
    with pytest.raises(CheckpointError, match=r"encoder 'timm_features'(.|\n)*stages.1.blocks.0.*: missing"):
        stage_of("test_convnext", tmp_path, stage=1)


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
