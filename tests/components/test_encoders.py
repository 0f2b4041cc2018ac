from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mmblocks.components import encoders
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
PRESETS: dict[str, tuple[str, int, int, int, int]] = {  # checkpoint, view, grid side, dim, millions of parameters
    "siglip_so400m_384": ("google/siglip-so400m-patch14-384", 384, 27, 1152, 398),
    "siglip_so400m_224": ("google/siglip-so400m-patch14-224", 224, 16, 1152, 397),
    "siglip2_so400m_384": ("google/siglip2-so400m-patch14-384", 384, 27, 1152, 398),
    "siglip_base_224": ("google/siglip-base-patch16-224", 224, 14, 768, 79),
    "siglip_base_384": ("google/siglip-base-patch16-384", 384, 24, 768, 79),
    "siglip_large_384": ("google/siglip-large-patch16-384", 384, 24, 1024, 291),
    "clip_vit_l_336": ("openai/clip-vit-large-patch14-336", 336, 24, 1024, 291),
    "clip_vit_l_224": ("openai/clip-vit-large-patch14", 224, 16, 1024, 291),
    "clip_vit_b_16": ("openai/clip-vit-base-patch16", 224, 14, 768, 79),
    "clip_vit_b_32": ("openai/clip-vit-base-patch32", 224, 7, 768, 80),
}


def on_meta(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return encoders.build(name, **settings)


def tiny(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return encoders.build({"name": name, **encoders[name].tiny, **settings})


def test_all_presets_of_published_models_stand_in_the_table_above() -> None:
    assert {name for name in encoders if encoders.about(name).of} - {"tiny_conv_48"} == set(PRESETS)


def test_tinyworlds_encoder_sees_one_cell_of_its_grid_per_token() -> None:
    encoder = on_meta("tiny_conv_48")
    assert (encoder.view_px, encoder.grid) == (Size(48, 48), Size(3, 3))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_sizes_of_the_published_models(name: str) -> None:
    checkpoint, view_px, side, dim, millions = PRESETS[name]
    encoder = on_meta(name)
    assert encoder.checkpoint == checkpoint
    assert encoder.view_px == Size(view_px, view_px)
    assert encoder.grid == Size(side, side)
    assert encoder.dim == dim
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6) == millions


def test_listing_encoders_imports_neither_torch_nor_timm_nor_transformers() -> None:
    code = (
        "import sys; from mmblocks.components import encoders; assert 'siglip' in list(encoders);"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_siglip_squashes_and_clip_crops() -> None:
    siglip, clip = on_meta("siglip"), on_meta("clip")
    assert (siglip.squash, siglip.pixel_mean, siglip.pixel_std) == (True, (0.5,) * 3, (0.5,) * 3)
    assert (clip.squash, clip.pixel_mean) == (False, CLIP_MEAN)


@pytest.mark.parametrize("name", ["siglip", "clip"])
@pytest.mark.parametrize(("layer", "blocks"), [(-2, 2), (-1, 3), (-3, 1), (1, 1), (3, 3)])
def test_only_the_blocks_that_the_layer_needs_are_built(name: str, layer: int, blocks: int) -> None:
    assert len(tiny(name, layer=layer).vision_model.encoder.layers) == blocks


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_tensor_names_are_those_of_published_checkpoints(name: str) -> None:
    keys = tiny(name).state_dict().keys()
    assert "vision_model.embeddings.patch_embedding.weight" in keys
    assert "vision_model.encoder.layers.0.mlp.fc1.weight" in keys
    assert all(key.startswith("vision_model.") for key in keys)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_nothing_is_built_that_features_do_not_need(name: str) -> None:
    assert not [key for key in tiny(name).state_dict() if "post_layernorm" in key or ".head." in key]


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_pixels_beyond_the_last_whole_patch_are_not_seen(name: str) -> None:
    encoder = tiny(name)
    picture = torch.zeros(1, 3, 30, 30)
    framed = picture.clone()
    framed[..., 28:, :] = framed[..., :, 28:] = 9.0
    assert torch.equal(encoder(picture), encoder(framed))


def test_clip_with_its_class_token_is_one_row_that_is_no_picture() -> None:
    patches, everything = tiny("clip"), tiny("clip", select="cls_patch")
    assert (everything.grid, everything.spatial) == (Size(1, 5), False)
    x = torch.randn(2, 3, 30, 30)
    assert torch.equal(everything(x)[:, 0, 1:], patches(x).flatten(1, 2))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layer": 0}, r"layer=0 names no block; with 3 blocks choose 1 to 3 or -3 to -1"),
        ({"layer": 4}, r"layer=4 names no block"),
        ({"layer": -4}, r"layer=-4 names no block"),
        ({"heads": 3}, r"dim=16 is not a multiple of heads=3"),
        ({"image_px": 10}, r"image_px=10 holds no whole patch of patch_px=14"),
        ({"image_px": 10, "heads": 3, "layer": 9}, r"image_px=10.*heads=3.*layer=9"),
    ],
)
@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_sizes_that_make_no_transformer_are_refused(name: str, settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny(name, **settings)


@pytest.mark.parametrize(
    ("model_name", "view_px", "side", "dim", "mean"),
    [
        ("vit_so400m_patch14_siglip_384", 384, 27, 1152, 0.5),
        ("vit_small_patch14_dinov2", 518, 37, 384, 0.485),  # a class token
        ("vit_small_patch14_reg4_dinov2", 518, 37, 384, 0.485),  # and four registers
        ("deit_tiny_distilled_patch16_224", 224, 14, 192, 0.485),  # a second class token
        ("vit_base_patch16_clip_224.openai", 224, 14, 768, 0.48145466),  # the tag decides the mean
    ],
)
def test_timm_states_the_facts_of_its_models(model_name: str, view_px: int, side: int, dim: int, mean: float) -> None:
    encoder = on_meta("timm_vit", model_name=model_name)
    assert (encoder.view_px, encoder.grid, encoder.dim) == (Size(view_px, view_px), Size(side, side), dim)
    assert encoder.pixel_mean[0] == mean


def test_a_timm_tag_given_as_checkpoint_decides_mean_and_std() -> None:
    openai = on_meta("timm_vit", model_name="vit_base_patch16_clip_224", checkpoint="openai")
    in21k = on_meta("timm_vit", model_name="vit_base_patch16_224", checkpoint="augreg_in21k")
    assert (openai.pixel_mean, in21k.pixel_mean) == (CLIP_MEAN, (0.5, 0.5, 0.5))


def test_a_timm_model_can_be_built_for_another_view() -> None:
    assert on_meta("timm_vit", model_name="vit_small_patch14_dinov2", image_px=224).grid == Size(16, 16)


@pytest.mark.parametrize(
    ("model_name", "reason"),
    [
        ("resnet18", r"\(ResNet\).*shrink the picture by \[2, 4, 8, 16, 32\].*no grid of patches"),
        ("swin_tiny_patch4_window7_224", r"\(SwinTransformer\).*shrink the picture by \[4, 8, 16, 32\]"),
        ("samvit_base_patch16", r"does not tell patch tokens from prefix tokens"),
        ("vit_tiny_patch16_225", r"timm has no model 'vit_tiny_patch16_225'. Did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.nonesuch", r"timm cannot build 'vit_tiny_patch16_224.nonesuch'.*nonesuch"),
    ],
)
def test_timm_models_without_a_patch_grid_are_refused_with_the_reason(model_name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        on_meta("timm_vit", model_name=model_name)


def test_two_names_for_timm_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="name two sets of weights"):
        on_meta("timm_vit", model_name="vit_base_patch16_224.augreg_in21k", checkpoint="augreg2_in21k_ft_in1k")


def test_tiny_conv_divides_the_view_by_its_strides() -> None:
    assert on_meta("tiny_conv").grid == Size(4, 4)
    assert on_meta("tiny_conv", strides=[2, 2, 2]).grid == Size(6, 6)
    assert on_meta("tiny_conv", widths=[16, 32, 64], strides=[2, 2, 2, 2]).grid == Size(3, 3)


def test_tiny_conv_works_without_attention_blocks() -> None:
    assert tiny("tiny_conv", blocks=0)(torch.zeros(1, 3, 48, 48)).shape == (1, 4, 4, 16)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"strides": [2, 2]}, r"2 strides and 2 widths"),
        ({"view_px": 50}, r"view_px=50 cannot be divided by strides=\(3, 2, 2\)"),
        ({"groups": 3}, r"widths \[8, 16\] are not multiples of groups=3"),
        ({"heads": 5}, r"dim=16 is not a multiple of heads=5"),
    ],
)
def test_tiny_conv_refuses_stems_that_do_not_fit(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny("tiny_conv", **settings)
