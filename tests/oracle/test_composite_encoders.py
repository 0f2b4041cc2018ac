"""Encoders made of encoders against their members run by hand in transformers and timm, and against s2wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import normalize, resize
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

import mmblocks
from mmblocks.components import encoders, projectors
from mmblocks.shapes import Size

S2_NUMBERS = load_file(Path(__file__).parents[1] / "golden" / "s2.safetensors")
VISION: dict[str, Any] = {"patch_size": 14, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
VIT = {"patch_px": 14, "depth": 3, "heads": 2, "mlp_dim": 24}
CLIP_COLOURS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIGLIP_COLOURS = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
CLOSE: Any = {"rtol": 0, "atol": 1e-5}  # fp32: normalisation and interpolation round in another order


def disturbed(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def siglip(folder: Path, image_px: int, dim: int) -> tuple[Any, dict[str, Any]]:
    """A whole tower of transformers, and our settings for what lies in its folder."""
    tower = disturbed(SiglipVisionModel(SiglipVisionConfig(image_size=image_px, hidden_size=dim, **VISION)))
    tower.save_pretrained(folder / "siglip")
    return tower, {"name": "siglip", "image_px": image_px, "dim": dim, **VIT, "checkpoint": str(folder / "siglip")}


def clip(folder: Path, image_px: int, dim: int) -> tuple[Any, dict[str, Any]]:
    tower = disturbed(CLIPVisionModel(CLIPVisionConfig(image_size=image_px, hidden_size=dim, **VISION)))
    tower.save_pretrained(folder / "clip")
    return tower, {"name": "clip", "image_px": image_px, "dim": dim, **VIT, "checkpoint": str(folder / "clip")}


def loaded(spec: Any) -> Any:
    encoder = encoders.build(spec)
    encoder.load_pretrained()
    return encoder.eval()


def pictures(side_px: int) -> Tensor:
    """(2, 3, side, side) from 0 to 1."""
    return torch.rand(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(7))


def arriving(encoder: Any, picture: Tensor) -> Tensor:
    return normalize(picture, list(encoder.pixel_mean), list(encoder.pixel_std))


def seen(picture: Tensor, side_px: int, colours: tuple[list[float], list[float]]) -> Tensor:
    """What a member gets by torchvision's hand: resized, then normalised."""
    resized = resize(picture, [side_px, side_px], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return normalize(resized, *colours)


def second_last(tower: Any, pixels: Tensor, side: int) -> Tensor:
    """(views, side, side, dim): hidden_states[-2] of transformers without the class token, if there is one."""
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    return states[:, -side * side :].unflatten(1, (side, side))


def at_centres(x: Tensor, side: int) -> Tensor:
    """(views, h, w, dim) to (views, side, side, dim), each cell a sum of four neighbours written out."""

    def lines(x: Tensor) -> Tensor:
        old = x.shape[1]
        rows = []
        for i in range(side):
            centre = min(max((i + 0.5) * old / side - 0.5, 0), old - 1)
            low, share = int(centre), centre - int(centre)
            rows.append(x[:, low] * (1 - share) + x[:, min(low + 1, old - 1)] * share)
        return torch.stack(rows, dim=1)

    return lines(lines(x).transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("align", ["first", "finest"])
def test_fused_features_are_those_of_its_members_joined(tmp_path: Path, align: str) -> None:
    (a, siglip_spec), (b, clip_spec) = siglip(tmp_path, 58, 16), clip(tmp_path, 30, 24)
    fused = loaded({"name": "fused", "members": [clip_spec, siglip_spec], "squash": True, "align": align})
    picture, side = pictures(58), {"first": 2, "finest": 4}[align]
    from_clip = second_last(b, seen(picture, 30, CLIP_COLOURS), 2)
    from_siglip = second_last(a, seen(picture, 58, SIGLIP_COLOURS), 4)
    want = torch.cat([at_centres(from_clip, side), at_centres(from_siglip, side)], dim=-1)
    assert fused.grid == Size(side, side)
    torch.testing.assert_close(fused(arriving(fused, picture)), want, **CLOSE)


@torch.no_grad()
def test_a_timm_member_gives_what_timm_gives_as_prismatic_reads_it(tmp_path: Path) -> None:
    whole = disturbed(timm.create_model("vit_tiny_patch16_224", img_size=32))
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    a, siglip_spec = siglip(tmp_path, 30, 16)
    sizes = {"model_name": "vit_tiny_patch16_224", "image_px": 32, "layer": -2, "norm": False}
    member = {"name": "timm_vit", **sizes, "checkpoint": str(tmp_path / "model.safetensors")}
    fused = loaded({"name": "fused", "members": [member, siglip_spec], "squash": True})
    picture = pictures(32)
    (from_timm,) = whole.get_intermediate_layers(seen(picture, 32, SIGLIP_COLOURS), n={len(whole.blocks) - 2})
    from_siglip = second_last(a, seen(picture, 30, SIGLIP_COLOURS), 2)
    want = torch.cat([from_timm.unflatten(1, (2, 2)), from_siglip], dim=-1)
    torch.testing.assert_close(fused(arriving(fused, picture)), want, **CLOSE)


@torch.no_grad()
def test_pixels_of_a_batch_reach_members_normalised_their_own_way(tiny_spec: Any, tmp_path: Path) -> None:
    (a, siglip_spec), (b, clip_spec) = siglip(tmp_path, 30, 16), clip(tmp_path, 30, 24)
    fused = {"name": "fused", "members": [siglip_spec, clip_spec], "squash": True}
    model = mmblocks.build({**tiny_spec, "encoder": fused}, seed=0).eval()
    model.encoder.load_pretrained()
    pixels = torch.randint(0, 256, (2, 3, 30, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    want = [
        second_last(tower, normalize(pixels / 255, *colours), 2)
        for tower, colours in ((a, SIGLIP_COLOURS), (b, CLIP_COLOURS))
    ]
    torch.testing.assert_close(model.encoder(model.normalise_pixels(pixels)), torch.cat(want, dim=-1), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 2), (1, 3), (1, 2, 3)])
def test_s2_features_are_those_of_s2wrapper(scales: tuple[int, ...]) -> None:
    member = {"name": "siglip", "image_px": 10, "patch_px": 3, "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 12}
    s2 = encoders.build({"name": "s2", "member": {**member, "layer": -1}, "scales": scales})
    weights = {k.removeprefix("w/"): v for k, v in S2_NUMBERS.items() if k.startswith("w/")}
    s2.load_state_dict({f"member.vision_model.{k}": v for k, v in weights.items()})
    side = 10 * scales[-1]
    k = torch.arange(2 * 3 * side * side, dtype=torch.float64)
    pixels = ((k * 37 % 251) / 125.5 - 1).float().view(2, 3, side, side)
    want = S2_NUMBERS["scales_" + "_".join(map(str, scales))]
    torch.testing.assert_close(s2.eval()(pixels).flatten(1, 2), want, **CLOSE)


@torch.no_grad()
def test_s2_runs_its_member_over_the_whole_picture_and_over_every_tile(tmp_path: Path) -> None:
    tower, spec = siglip(tmp_path, 30, 16)
    s2 = loaded({"name": "s2", "member": spec, "scales": (1, 2)})
    x = arriving(s2, pictures(60))
    small = nn.functional.interpolate(x, scale_factor=0.5, mode="bicubic")
    corners = {
        (i, j): second_last(tower, x[..., 30 * i : 30 * i + 30, 30 * j : 30 * j + 30], 2)
        for i in (0, 1)
        for j in (0, 1)
    }
    large = torch.stack([torch.stack([corners[i, j].mean((1, 2)) for j in (0, 1)], 1) for i in (0, 1)], 1)
    torch.testing.assert_close(s2(x), torch.cat([second_last(tower, small, 2), large], dim=-1), **CLOSE)


@torch.no_grad()
def test_interleaved_tokens_through_one_linear_projector_are_those_of_two_adapters(tmp_path: Path) -> None:
    (a, clip_spec), (b, siglip_spec) = clip(tmp_path, 44, 24), siglip(tmp_path, 44, 16)
    row = loaded({"name": "interleaved", "members": [clip_spec, siglip_spec], "squash": False})
    projector = projectors.build("linear", in_dim=row.dim, out_dim=10, grid=row.grid)
    for_clip, for_siglip = projector.head.weight.split([24, 16], dim=1)
    picture = pictures(44)
    want = torch.empty(2, 18, 10)
    for start, tower, colours, weight in ((0, a, CLIP_COLOURS, for_clip), (1, b, SIGLIP_COLOURS, for_siglip)):
        features = second_last(tower, seen(picture, 44, colours), 3).flatten(1, 2)
        want[:, start::2] = nn.functional.linear(features, weight, projector.head.bias)
    torch.testing.assert_close(projector(row(arriving(row, picture)))[:, 0], want, **CLOSE)
