"""Pixels of every view as LLaVA-NeXT's own preprocessing makes them, and tokens computed from such pixels.

synth(w, h) is the test image: R = 3x + 5y, G = xy // 16 + 7x, B = x xor y, all modulo 256. Sizes are (width, height).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange, reduce
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mmblocks.components import poolings, tokenizers
from mmblocks.data.media.pixels import render_views
from mmblocks.shapes import Size, View, VisualPlan, VisualShape

GREY = (127, 127, 127)
SIGLIP = {"view_px": Size(384, 384), "grid": Size(27, 27), "spatial": True, "squash": True}
MARKS = {"newline": torch.tensor([-1.0, 100.0, 200.0])}


def golden(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name(f"{name}.safetensors"))


def synth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([3 * x + 5 * y, x * y // 16 + 7 * x, x ^ y], axis=-1).astype(np.uint8))


def shape_of(image: Image.Image) -> VisualShape:
    return VisualShape("image", Size(image.height, image.width))


# Views --------------------------------------------------------------------------------------------------------------

TILES = golden("tiles")
TILE_PIXELS = tensors("tiles")


def planned(case: dict[str, Any]) -> tuple[VisualShape, VisualPlan]:
    width, height = case["size"]
    # "pad" is compared before its resize: the view is the square itself.
    side = case.get("tile", case.get("image_split_resolution", max(case["size"])))
    spec = {
        "anyres": {"name": "anyres", "pinpoints": case.get("pinpoints")},
        "pad": {"name": "pad"},
        "highres": {"name": "highres", "side_px": 48},  # the largest of its "32,48"
        "crop_split": {"name": "crop_split", "side_px": case.get("image_crop_resolution")},
    }[case["mode"]]
    visual = VisualShape("image", Size(height, width))
    tokenizer = tokenizers.build(spec, view_px=Size(side, side), grid=Size(2, 2), spatial=True)
    assert tokenizer.find_faults() == []
    return visual, tokenizer.plan(visual)


@pytest.mark.parametrize("case", TILES["cases"], ids=lambda c: c["name"])
def test_views_have_the_same_pixels(case):
    _, plan = planned(case)
    views = render_views(synth(*case["size"]), plan.views, tuple(case.get("background", GREY)))
    pixels = rearrange(views, "n c h w -> n h w c").contiguous()
    assert [hashlib.sha256(view.numpy().tobytes()).hexdigest() for view in pixels] == case["sha256"]
    if "tensor" in case:
        assert torch.equal(pixels, TILE_PIXELS[case["tensor"]].reshape(pixels.shape))


def normalised(pixels: Tensor) -> Tensor:
    """What SigLIP is given: (x / 255 - 0.5) / 0.5."""
    return (pixels / 255 - 0.5) / 0.5


def probed(case: dict[str, Any]) -> Tensor:
    image = synth(*case["size"])
    mode = case.get("mode", "anyres")
    if mode.startswith("video"):
        clip = VisualShape("video", Size(image.height, image.width), num_frames=2, fps=1.0)
        plan = tokenizers.build("frames", pooling=poolings.build("bilinear"), **SIGLIP).plan(clip)
        negative = Image.fromarray(255 - np.asarray(image))
        return rendered([image, negative], plan.views)
    spec = {"anyres": "anyres_max", "square": "square"}[mode]
    return rendered([image], tokenizers.build(spec, **SIGLIP).plan(shape_of(image)).views)


def rendered(frames: Sequence[Image.Image], views: Sequence[View]) -> Tensor:
    of_frame = [[view for view in views if view.frame == n] for n in range(len(frames))]
    return torch.cat([render_views(frame, its_views, GREY) for frame, its_views in zip(frames, of_frame, strict=True)])


@pytest.mark.parametrize("case", TILES["siglip_float"], ids=lambda c: f"{c['size']} {c.get('mode', 'anyres')}")
def test_normalised_pixels_agree(case):
    pixels = normalised(probed(case))
    assert list(pixels.shape) == case["shape"]
    *at, want = zip(*case["probes"], strict=True)
    torch.testing.assert_close(
        pixels[tuple(at)], torch.tensor(want), rtol=0, atol=1e-6
    )  # fp32: one order of operations
    assert pixels.double().mean().item() == pytest.approx(case["mean"], abs=1e-6)


# From pixels to tokens ----------------------------------------------------------------------------------------------

E2E = golden("e2e")
E2E_ROWS = tensors("e2e")


def patch_means(pixels: Tensor) -> Tensor:
    """The stub encoder: the mean of each 14x14 patch, whole patches only. (views, 3, 384, 384) to (views, 27, 27, 3)."""
    return reduce(normalised(pixels)[..., :378, :378], "n c (h p) (w q) -> n h w c", "mean", p=14, q=14)


def shown(case: dict[str, Any]) -> tuple[list[Image.Image], VisualShape, Any]:
    """The frames of a case, its shape, and the tokenizer that serves it."""
    if "frames" in case:
        frames = [Image.fromarray(f.numpy()) for f in E2E_ROWS[f"{case['name']}#frames_uint8"]]
        count, height, width, _ = case["frames"]
        tokenizer = tokenizers.build("frames", pooling=poolings.build("bilinear"), **SIGLIP)
        return frames, VisualShape("video", Size(height, width), count, 1.0), tokenizer
    image = synth(*case["size"])
    spec: Any = {"name": case["aspect"], "newline": True}
    if case["aspect"] == "anyres_max_9":
        spec = "anyres_max"
    return [image], shape_of(image), tokenizers.build(spec, **SIGLIP)


@pytest.mark.parametrize("case", E2E["cases"], ids=lambda c: c["name"])
def test_a_picture_becomes_the_same_tokens_from_its_pixels_on(case):
    frames, visual, tokenizer = shown(case)
    plan = tokenizer.plan(visual)
    rows = tokenizer.assemble(patch_means(rendered(frames, plan.views)), plan, MARKS)

    assert len(plan.views) == case["pixel_shape"][-4]
    assert len(rows) == plan.num_tokens == case["n_tokens"]
    at = E2E_ROWS[f"{case['name']}#rows"].long()
    # The tolerance of the golden file: means of 196 float32 pixels, summed in another order.
    torch.testing.assert_close(rows[at], E2E_ROWS[case["name"]], rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.double().mean(0), torch.tensor(case["mean"]).double(), rtol=0, atol=1e-4)
