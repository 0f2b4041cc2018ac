from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mmblocks.components import encoders
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size

SINGLE_TOWERS = ("clip", "siglip", "dinov2", "dinov3", "hf_vision", "timm_vit", "timm_features", "timm_presets")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
PRESETS: dict[str, tuple[str, int, int, int, int]] = {  # checkpoint, view, grid side, dim, millions of parameters
    "siglip_base_224": ("google/siglip-base-patch16-224", 224, 14, 768, 79),
    "siglip_base_256": ("google/siglip-base-patch16-256", 256, 16, 768, 79),
    "siglip_base_384": ("google/siglip-base-patch16-384", 384, 24, 768, 79),
    "siglip_base_512": ("google/siglip-base-patch16-512", 512, 32, 768, 79),
    "siglip_large_256": ("google/siglip-large-patch16-256", 256, 16, 1024, 291),
    "siglip_large_384": ("google/siglip-large-patch16-384", 384, 24, 1024, 291),
    "siglip_so400m_224": ("google/siglip-so400m-patch14-224", 224, 16, 1152, 397),
    "siglip_so400m_384": ("google/siglip-so400m-patch14-384", 384, 27, 1152, 398),
    "siglip2_base_224": ("google/siglip2-base-patch16-224", 224, 14, 768, 79),
    "siglip2_base_256": ("google/siglip2-base-patch16-256", 256, 16, 768, 79),
    "siglip2_base_384": ("google/siglip2-base-patch16-384", 384, 24, 768, 79),
    "siglip2_base_512": ("google/siglip2-base-patch16-512", 512, 32, 768, 79),
    "siglip2_giant_256": ("google/siglip2-giant-opt-patch16-256", 256, 16, 1536, 1107),
    "siglip2_giant_384": ("google/siglip2-giant-opt-patch16-384", 384, 24, 1536, 1107),
    "siglip2_large_256": ("google/siglip2-large-patch16-256", 256, 16, 1024, 291),
    "siglip2_large_384": ("google/siglip2-large-patch16-384", 384, 24, 1024, 291),
    "siglip2_large_512": ("google/siglip2-large-patch16-512", 512, 32, 1024, 292),
    "siglip2_so400m_224": ("google/siglip2-so400m-patch14-224", 224, 16, 1152, 397),
    "siglip2_so400m_384": ("google/siglip2-so400m-patch14-384", 384, 27, 1152, 398),
    "siglip2_so400m_p16_256": ("google/siglip2-so400m-patch16-256", 256, 16, 1152, 397),
    "siglip2_so400m_p16_384": ("google/siglip2-so400m-patch16-384", 384, 24, 1152, 398),
    "siglip2_so400m_p16_512": ("google/siglip2-so400m-patch16-512", 512, 32, 1152, 398),
    "clip_vit_b_16": ("openai/clip-vit-base-patch16", 224, 14, 768, 79),
    "clip_vit_b_32": ("openai/clip-vit-base-patch32", 224, 7, 768, 80),
    "clip_vit_l_224": ("openai/clip-vit-large-patch14", 224, 16, 1024, 291),
    "clip_vit_l_336": ("openai/clip-vit-large-patch14-336", 336, 24, 1024, 291),
    "dinov2_base": ("facebook/dinov2-base", 518, 37, 768, 87),
    "dinov2_giant": ("facebook/dinov2-giant", 518, 37, 1536, 1136),
    "dinov2_large": ("facebook/dinov2-large", 518, 37, 1024, 304),
    "dinov2_reg_base": ("facebook/dinov2-with-registers-base", 518, 37, 768, 87),
    "dinov2_reg_giant": ("facebook/dinov2-with-registers-giant", 518, 37, 1536, 1136),
    "dinov2_reg_large": ("facebook/dinov2-with-registers-large", 518, 37, 1024, 304),
    "dinov2_reg_small": ("facebook/dinov2-with-registers-small", 518, 37, 384, 22),
    "dinov2_small": ("facebook/dinov2-small", 518, 37, 384, 22),
    "dinov3_vit7b16": ("facebook/dinov3-vit7b16-pretrain-lvd1689m", 224, 14, 4096, 6716),
    "dinov3_vitb16": ("facebook/dinov3-vitb16-pretrain-lvd1689m", 224, 14, 768, 86),
    "dinov3_vith16plus": ("facebook/dinov3-vith16plus-pretrain-lvd1689m", 224, 14, 1280, 841),
    "dinov3_vitl16": ("facebook/dinov3-vitl16-pretrain-lvd1689m", 224, 14, 1024, 303),
    "dinov3_vits16": ("facebook/dinov3-vits16-pretrain-lvd1689m", 224, 14, 384, 22),
    "dinov3_vits16plus": ("facebook/dinov3-vits16plus-pretrain-lvd1689m", 224, 14, 384, 29),
    "dinov3_convnext_base": ("facebook/dinov3-convnext-base-pretrain-lvd1689m", 224, 7, 1024, 88),
    "dinov3_convnext_large": ("facebook/dinov3-convnext-large-pretrain-lvd1689m", 224, 7, 1536, 196),
    "dinov3_convnext_small": ("facebook/dinov3-convnext-small-pretrain-lvd1689m", 224, 7, 768, 49),
    "dinov3_convnext_tiny": ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m", 224, 7, 768, 28),
    "mlcd_bigg_336": ("DeepGlint-AI/mlcd-vit-bigG-patch14-336", 336, 24, 1664, 1842),
    "mlcd_bigg_448": ("DeepGlint-AI/mlcd-vit-bigG-patch14-448", 448, 32, 1664, 1842),
    "dfn_vit_h_378": ("pretrained", 378, 27, 1280, 612),
    "eva02_clip_l_224": ("pretrained", 224, 16, 1024, 291),
    "eva02_clip_l_336": ("pretrained", 336, 24, 1024, 291),
    "openclip_convnext_large_320": ("pretrained", 320, 10, 1536, 196),
    "openclip_convnext_xxlarge_256": ("pretrained", 256, 8, 3072, 843),
    "openclip_vit_bigg_224": ("pretrained", 224, 16, 1664, 1804),
    "openclip_vit_h_224": ("pretrained", 224, 16, 1280, 611),
    "openclip_vit_l_224": ("pretrained", 224, 16, 1024, 291),
    "aimv2_1b_224": ("pretrained", 224, 16, 2048, 1235),
    "aimv2_1b_336": ("pretrained", 336, 24, 2048, 1236),
    "aimv2_1b_448": ("pretrained", 448, 32, 2048, 1237),
    "aimv2_3b_224": ("pretrained", 224, 16, 3072, 2721),
    "aimv2_3b_336": ("pretrained", 336, 24, 3072, 2722),
    "aimv2_3b_448": ("pretrained", 448, 32, 3072, 2723),
    "aimv2_huge_224": ("pretrained", 224, 16, 1536, 681),
    "aimv2_huge_336": ("pretrained", 336, 24, 1536, 681),
    "aimv2_huge_448": ("pretrained", 448, 32, 1536, 682),
    "aimv2_large_224": ("pretrained", 224, 16, 1024, 309),
    "aimv2_large_336": ("pretrained", 336, 24, 1024, 310),
    "aimv2_large_448": ("pretrained", 448, 32, 1024, 310),
    "c_radio_v3_b_512": ("pretrained", 512, 32, 768, 86),
    "c_radio_v3_g_512": ("pretrained", 512, 32, 1536, 1136),
    "c_radio_v3_h_512": ("pretrained", 512, 32, 1280, 632),
    "c_radio_v3_l_512": ("pretrained", 512, 32, 1024, 304),
    "c_radio_v4_h_512": ("pretrained", 512, 32, 1280, 632),
    "c_radio_v4_so400m_512": ("pretrained", 512, 32, 1152, 414),
    "fastvithd_1024": ("KamilaMila/FastVLM-7B", 1024, 16, 3072, 123),
    "mobileclip2_s0_256": ("pretrained", 256, 8, 512, 11),
    "mobileclip2_s2_256": ("pretrained", 256, 8, 640, 35),
    "mobileclip2_s3_256": ("pretrained", 256, 4, 1536, 122),
    "mobileclip2_s4_256": ("pretrained", 256, 4, 2048, 316),
    "pe_core_b_224": ("pretrained", 224, 14, 768, 79),
    "pe_core_g_448": ("pretrained", 448, 32, 1536, 1741),
    "pe_core_s_384": ("pretrained", 384, 24, 384, 20),
    "pe_core_t_384": ("pretrained", 384, 24, 192, 5),
    "pe_lang_g_448": ("pretrained", 448, 32, 1536, 1741),
    "pe_lang_g_448_tiling": ("pretrained", 448, 32, 1536, 1741),
    "pe_lang_l_448": ("pretrained", 448, 32, 1024, 291),
    "pe_lang_l_448_tiling": ("pretrained", 448, 32, 1024, 291),
    "pe_core_l_336": ("pretrained", 336, 24, 1024, 291),
    "vitamin_l_336": ("pretrained", 336, 21, 1024, 322),
}


def on_meta(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return encoders.build(name, **settings)


def tiny(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return encoders.build({"name": name, **encoders[name].tiny, **settings})


def test_all_presets_of_published_models_stand_in_the_table_above() -> None:
    files = {f"mmblocks.encoders.{name}" for name in SINGLE_TOWERS}
    presets = {
        name for name in encoders if encoders.find_info(name).preset_of and encoders.find_info(name).module in files
    }
    assert presets == set(PRESETS)


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


def test_towers_trained_on_other_pictures_state_other_colours() -> None:
    means = {name: on_meta(name).pixel_mean[0] for name in ("dinov2_small", "dinov3_vits16", "eva02_clip_l_336")}
    assert means == {"dinov2_small": 0.485, "dinov3_vits16": 0.485, "eva02_clip_l_336": CLIP_MEAN[0]}
    assert on_meta("openclip_vit_l_224").pixel_mean == (0.5,) * 3  # laion's ViT-L alone was trained so


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
        ({"layer": [1, 4, -9]}, r"layer=\(1, 4, -9\): 4, -9 of it do not exist; with 3 blocks choose from 0"),
        ({"layer": [0]}, r"layer=\(0,\): it names no block"),
        ({"layer": []}, r"layer=\(\): it names no block"),
        ({"heads": 3}, r"dim=16 is not a multiple of heads=3"),
        ({"image_px": 10}, r"image_px=10 holds no whole patch of patch_px=14"),
        ({"image_px": 10, "heads": 3, "layer": 9}, r"image_px=10.*heads=3.*layer=9"),
    ],
)
@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_sizes_that_make_no_transformer_are_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        (
            "dinov2",
            {"trained_px": 10, "registers": -1},
            r"trained_px=10 holds no whole patch.*registers=-1 is no number",
        ),
        ("dinov2", {"heads": 3}, r"dim=16 is not a multiple of heads=3"),
        ("dinov3", {"heads": 8, "registers": -1}, r"dim=16 with heads=8 gives 2 channels per head.*registers=-1"),
        ("dinov3", {"layer": 9}, r"layer=9 names no block"),
    ],
)
def test_sizes_that_make_no_dino_are_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny(name, **settings)


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_dino_without_its_norm_holds_no_norm_and_never_a_mask_token(name: str) -> None:
    final = {"dinov2": "tower.layernorm.weight", "dinov3": "tower.norm.weight"}[name]
    assert final in tiny(name).state_dict()
    assert final not in tiny(name, norm=False).state_dict()
    assert not [key for key in tiny(name).state_dict() if "mask_token" in key]


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2", "dinov3", "timm_vit"])
def test_layers_side_by_side_are_as_wide_as_all_of_them(name: str) -> None:
    encoder = tiny(name, layer=[1, -1, 2])
    assert encoder.dim == 3 * tiny(name).dim
    assert encoder(torch.zeros(1, 3, *encoder.view_px)).shape == (1, *encoder.grid, encoder.dim)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"grid": [3, 3]},
            r"grid=\(3, 3\) and prefix_tokens=1 are declared, but ViTModel gives 5 tokens, not 1 \+ 3 x 3 for image_px=32",
        ),
        ({"prefix_tokens": 0}, r"prefix_tokens=0 are declared, but ViTModel gives 5 tokens, not 0 \+ 2 x 2"),
        ({"image_px": 48}, r"ViTModel cannot take image_px=48: ValueError: "),
        ({"layer": 3}, r"layer=3 names no block; with 2 blocks choose 1 to 2"),
        ({"sizes": {"hiden_size": 16}}, r"sizes has \['hiden_size'\], which family='vit' does not know"),
        ({"sizes": {"hidden_size": "wide"}}, r"family='vit' with sizes=.*hidden_size"),
        ({"family": "nonesuch"}, r"family='nonesuch'"),
        ({"family": "bert", "sizes": {"num_hidden_layers": 1}}, r"BertModel cannot take image_px=32"),
        ({"family": None, "sizes": {}}, r"family=None with checkpoint=None and sizes=\{\}; write a checkpoint alone"),
    ],
)
def test_a_tower_that_is_not_as_declared_is_refused_with_both_statements(settings: dict[str, Any], reason: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=reason):
        tiny("hf_vision", **settings)


def test_a_tower_without_prefix_tokens_states_its_grid_itself() -> None:
    settings = {"family": "resnet", "sizes": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}}
    with pytest.raises(ConfigError, match=r"but ResNetModel gives a grid of \(4, 4\) without prefix tokens"):
        tiny("hf_vision", **settings)
    assert tiny("hf_vision", **settings, grid=[4, 4], prefix_tokens=0).dim == 16


def test_parts_that_any_towers_features_do_not_need_are_not_kept() -> None:
    assert not [key for key in tiny("hf_vision").state_dict() if "pooler" in key or "mask" in key]


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


@pytest.mark.parametrize(
    ("model_name", "view_px", "side", "dim"),
    [
        ("vitamin_small_224", 224, 14, 384),  # patches of feature maps
        ("vit_small_r26_s32_224", 224, 7, 384),
        ("vit_small_patch16_dinov3", 256, 16, 384),  # rotary positions, a class token and four registers
    ],
)
def test_transformers_of_timm_that_are_not_plain_have_a_patch_grid_too(
    model_name: str, view_px: int, side: int, dim: int
) -> None:
    encoder = on_meta("timm_vit", model_name=model_name)
    assert (encoder.view_px, encoder.grid, encoder.dim) == (Size(view_px, view_px), Size(side, side), dim)


@pytest.mark.parametrize(
    ("settings", "view_px", "side", "dim"),
    [
        ({"model_name": "test_convnext"}, 160, 5, 64),
        ({"model_name": "test_convnext", "image_px": 100}, 100, 3, 64),  # 3.1 cells of 32 pixels
        ({"model_name": "test_convnext", "stage": 1}, 160, 20, 32),
        ({"model_name": "resnet18", "image_px": 100}, 100, 4, 512),  # padded convolutions round up
        ({"model_name": "swin_tiny_patch4_window7_224"}, 224, 7, 768),
        ({"model_name": "swin_tiny_patch4_window7_224", "stage": -2, "image_px": 448}, 448, 28, 384),
    ],
)
def test_timm_states_the_facts_of_its_stages(settings: dict[str, Any], view_px: int, side: int, dim: int) -> None:
    encoder = on_meta("timm_features", **settings)
    assert (encoder.view_px, encoder.grid, encoder.dim) == (Size(view_px, view_px), Size(side, side), dim)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"stage": 4}, r"stage=4 names no stage; 'test_convnext' has 4: choose 0 to 3 or -4 to -1"),
        (
            {"model_name": "test_convnex"},
            r"encoder 'timm_features': timm [\d.]+ has no model 'test_convnex'. Did you mean",
        ),
        ({"image_px": 2}, r"'test_convnext' \(ConvNeXt\) gives no feature map for a view of image_px=2"),
    ],
)
def test_stages_that_timm_does_not_have_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        on_meta("timm_features", **{"model_name": "test_convnext", **settings})


def test_a_timm_tag_given_as_checkpoint_decides_mean_and_std() -> None:
    openai = on_meta("timm_vit", model_name="vit_base_patch16_clip_224", checkpoint="openai")
    in21k = on_meta("timm_vit", model_name="vit_base_patch16_224", checkpoint="augreg_in21k")
    assert (openai.pixel_mean, in21k.pixel_mean) == (CLIP_MEAN, (0.5, 0.5, 0.5))


def test_a_timm_model_can_be_built_for_another_view() -> None:
    assert on_meta("timm_vit", model_name="vit_small_patch14_dinov2", image_px=224).grid == Size(16, 16)


@pytest.mark.parametrize(
    ("model_name", "reason"),
    [
        ("resnet18", r"\(ResNet\).*shrink the image by \[2, 4, 8, 16, 32\].*no grid of patches"),
        ("swin_tiny_patch4_window7_224", r"\(SwinTransformer\).*shrink the image by \[4, 8, 16, 32\]"),
        ("samvit_base_patch16", r"does not separate patch tokens from prefix tokens"),
        ("vit_tiny_patch16_225", r"timm [\d.]+ has no model 'vit_tiny_patch16_225'. Did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.nonesuch", r"timm cannot build 'vit_tiny_patch16_224.nonesuch'.*nonesuch"),
    ],
)
def test_timm_models_without_a_patch_grid_are_refused_with_the_reason(model_name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        on_meta("timm_vit", model_name=model_name)


def test_timm_gives_no_state_before_the_first_block() -> None:
    with pytest.raises(ConfigError, match=r"layer=\(0, 2\): timm gives no state before the first block"):
        tiny("timm_vit", layer=[0, 2])


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


def blocks_run(encoder: Any, pixels: torch.Tensor) -> list[int]:
    """The blocks that ran, in order."""
    ran: list[int] = []
    for i, block in enumerate(encoder.vision_model.encoder.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    encoder(pixels)
    return ran


@pytest.mark.parametrize(("layer", "count"), [(-2, 26), (-1, 27), ([3, 9], 9)])
def test_a_siglip_of_27_blocks_runs_those_that_its_layer_needs(layer: int, count: int) -> None:
    encoder = tiny("siglip", depth=27, layer=layer)
    assert blocks_run(encoder, torch.zeros(1, 3, 30, 30, dtype=torch.uint8)) == list(range(count))


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2", "dinov3", "hf_vision", "timm_vit"])
def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass(name: str, dtype: torch.dtype, mode: bool) -> None:
    encoder = tiny(name).train(mode)
    pixels = torch.zeros(2, 3, *encoder.view_px, dtype=dtype)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes), lambda x: x):
        encoder(pixels)
        assert sum(kept) > 0  # while it learns
        kept.clear()
        features = encoder.requires_grad_(False)(pixels)
    assert not kept
    assert features.grad_fn is None
