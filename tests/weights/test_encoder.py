"""EfficientNet-Lite0's features in `timm_features` are timm's own."""

import pytest
import timm
import torch

import mmblocks
from tests.weights.packages import TIMM_NAME, read_encoder_tensors

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def theirs():
    model = timm.create_model(TIMM_NAME).eval()
    model.load_state_dict(read_encoder_tensors())
    return model


@pytest.mark.parametrize(("stage", "image_px", "cells"), [(-2, 128, 8), (-1, 160, 5), (-1, 224, 7)])
@torch.no_grad()
def test_features_are_those_of_timm(spec, theirs, stage, image_px, cells):
    settings = {**spec["encoder"], "stage": stage, "image_px": image_px}
    backbone = {"name": "qwen2_tiny"}
    model = mmblocks.build(encoder=settings, backbone=backbone, template="chatml", tokenizer={"image": "square"})
    model.encoder.load_pretrained()
    pixels = torch.randint(256, (2, 3, image_px, image_px), dtype=torch.uint8)
    ours = model.eval().encode_pixels(pixels)
    mean, std = (torch.tensor(theirs.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    (expected,) = theirs.forward_intermediates(
        (pixels / 255 - mean) / std, indices=[5 + stage], intermediates_only=True
    )
    assert ours.shape == (2, cells, cells, model.encoder.dim)
    torch.testing.assert_close(ours, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
