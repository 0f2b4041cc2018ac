"""Projectors against transformers, timm and torchvision, with their weights copied over."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import LayerNormAct2d, Mlp, SwiGLU
from timm.models.twins import PosConv
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops.misc import SqueezeExcitation
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config

from mmblocks.components import projectors
from mmblocks.projectors.token_merging import merge_alike

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # fp32: other kernels sum in another order


def disturbed(model: nn.Module) -> Any:
    """Random in every tensor, so that no fresh LayerNorm or zero bias can hide a tensor that is not used."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def renamed(module: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """A module's weights with the beginnings of their names changed; those named nowhere are left out."""
    found = {}
    for key, tensor in module.state_dict().items():
        start = next((s for s in names if key.startswith(s)), None)
        if start is not None:
            found[names[start] + key.removeprefix(start)] = tensor
    return found


# Pixel shuffle ------------------------------------------------------------------------------------------------------


def internvl(ratio: float) -> Any:
    vision = InternVLVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=48, patch_size=4
    )
    text = Qwen2Config(
        hidden_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=32,
    )
    return InternVLModel(InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=ratio))


@pytest.mark.parametrize("factor", [2, 4])
@torch.no_grad()
def test_pixel_shuffle_gives_the_image_features_of_internvl(factor: int) -> None:
    model = disturbed(internvl(1 / factor))
    pixels = torch.randn(2, 3, 48, 48)
    want = model.get_image_features(pixel_values=pixels).pooler_output
    ours = projectors.build({"name": "pixel_shuffle_mlp", "factor": factor}, in_dim=16, out_dim=20)
    places = {"layer_norm": "body.1", "linear_1": "body.2", "linear_2": "head"}
    ours.load_state_dict(renamed(model.multi_modal_projector, places))
    patches = model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    got = ours(patches.view(2, 12, 12, 16))
    torch.testing.assert_close(got.flatten(1, 2), want.view(2, -1, 20), **TOLERANCE)


# Gated --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_gated_projector_is_timms_swiglu() -> None:
    theirs = disturbed(SwiGLU(6, 15, 10))
    ours = projectors.build({"name": "gated", "expansion": 2.5}, in_dim=6, out_dim=10)
    ours.load_state_dict(renamed(theirs, {"fc1_g": "body.gate", "fc1_x": "body.up", "fc2": "head"}))
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x), **TOLERANCE)


# MobileVLM ----------------------------------------------------------------------------------------------------------


def mobile_block(dim: int, stride: int) -> InvertedResidual:
    return InvertedResidual(
        InvertedResidualConfig(dim, 3, dim, dim, True, "HS", stride, 1, 1),
        partial(LayerNormAct2d, act_layer=None),
        partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid),
    )


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
@pytest.mark.parametrize("dim", [16, 40, 72])  # the squeezed width is 8, 16 (10 would lose too much) and 24
@torch.no_grad()
def test_ldp_is_an_mlp_and_two_mobilenet_blocks(grid: tuple[int, int], dim: int) -> None:
    mlp, blocks = disturbed(Mlp(6, dim, dim)), disturbed(nn.Sequential(mobile_block(dim, 1), mobile_block(dim, 2)))
    ours = projectors.build("ldp", in_dim=6, out_dim=dim)
    weights = renamed(mlp, {"fc1": "body.mlp.1", "fc2": "body.mlp.3"})
    weights |= renamed(blocks, {"0.": "body.mb_block.1.", "1.": "body.mb_block.2."})
    ours.load_state_dict(weights)
    x = torch.randn(2, *grid, 6)
    want = blocks(mlp(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    # fp32: a channel's squared deviation can be tiny in LayerNorm, which then magnifies the last bits.
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)


def means(x: Tensor, rows: int, columns: int) -> Tensor:
    """Cell i of k covers the old ones from floor(i * n / k) to ceil((i + 1) * n / k); in float64."""
    cells, (height, width) = x.double().numpy(), x.shape[1:3]
    out = np.empty((x.shape[0], rows, columns, x.shape[3]))
    for i, j in np.ndindex(rows, columns):
        covered = (slice(i * n // k, -(-(i + 1) * n // k)) for i, n, k in ((i, height, rows), (j, width, columns)))
        out[:, i, j] = cells[:, *covered].mean(axis=(1, 2))
    return torch.from_numpy(out).to(x.dtype)


@pytest.mark.parametrize("grid", [(24, 24), (27, 27), (12, 17)])
@torch.no_grad()
def test_ldpv2_is_an_mlp_means_and_a_position_convolution(grid: tuple[int, int]) -> None:
    mlp, position = disturbed(Mlp(6, 10, 10)), disturbed(PosConv(10, 10))
    ours = projectors.build("ldpv2", in_dim=6, out_dim=10)
    weights = renamed(mlp, {"fc1": "body.mlp.0", "fc2": "body.mlp.2"})
    ours.load_state_dict(weights | renamed(position, {"proj.0": "body.peg"}))
    x = torch.randn(2, *grid, 6)
    want = position(means(mlp(x), 12, 12).flatten(1, 2), (12, 12))
    torch.testing.assert_close(ours(x).flatten(1, 2), want, **TOLERANCE)


# Token merging ------------------------------------------------------------------------------------------------------


def merged_in_loops(x: np.ndarray, tokens: int) -> list[tuple[float, np.ndarray]]:
    """ToMe as its paper describes it, token by token: sizes and means in the order of their places."""
    groups = [(1.0, token) for token in x]
    while len(groups) > tokens:
        odd = range(1, len(groups), 2)
        best = {}
        for i in range(0, len(groups), 2):
            alike = {j: cosine(groups[i][1], groups[j][1]) for j in odd}
            best[i] = max((score, -j) for j, score in alike.items())
        pairs = min(len(groups) - tokens, len(groups) // 2)
        moving = sorted(best, key=lambda i: -best[i][0])[:pairs]
        sums = [size * mean for size, mean in groups]
        sizes = [size for size, _ in groups]
        for i in moving:
            j = -best[i][1]
            sums[j], sizes[j] = sums[j] + groups[i][0] * groups[i][1], sizes[j] + groups[i][0]
        groups = [(sizes[k], sums[k] / sizes[k]) for k in range(len(groups)) if k not in moving]
    return groups


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("cells", "tokens"), [(16, 9), (15, 4), (24, 5), (9, 1)])
def test_merging_follows_the_paper(cells: int, tokens: int) -> None:
    x = torch.randn(3, cells, 6, dtype=torch.float64)
    merged, sizes = merge_alike(x, tokens)
    for view in range(3):
        want = merged_in_loops(x[view].numpy(), tokens)
        assert sizes[view].tolist() == [size for size, _ in want]
        np.testing.assert_allclose(merged[view].numpy(), np.stack([mean for _, mean in want]), rtol=0, atol=1e-12)
