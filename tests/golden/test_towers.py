"""Vision towers against outputs of the original LLaVA-NeXT code (tests/golden/modules.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmblocks.components import encoders

HERE = Path(__file__).parent
CASES: list[dict[str, Any]] = json.loads((HERE / "modules.json").read_text())["cases"]
TENSORS = load_file(HERE / "modules.safetensors")
SIZES = {
    "image_size": "image_px",
    "patch_size": "patch_px",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_dim",
    "hidden_act": "hidden_act",
}
TOLERANCE = {"rtol": 0, "atol": 1e-4}  # stated with the data: another transformers, other matrix kernels


def of_kind(*kinds: str) -> Any:
    return pytest.mark.parametrize("case", [c for c in CASES if c["kind"] in kinds], ids=lambda c: c["name"])


def named(*names: str) -> Any:
    return pytest.mark.parametrize("case", [c for c in CASES if c["name"] in names], ids=lambda c: c["name"])


def picture(shape: list[int]) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((k * 37 % 251) / 125.5 - 1).float().view(shape)


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    prefix = f"{case['name']}/w/"
    return {k.removeprefix(prefix): v for k, v in TENSORS.items() if k.startswith(prefix)}


def tower(case: dict[str, Any], family: str, folder: Path, **settings: Any) -> Any:
    """The encoder of the case, loaded from a folder laid out like a published checkpoint."""
    save_file(weights(case), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": f"{family}_vision_model", **case["config"]}))
    sizes = {SIZES[key]: value for key, value in case["config"].items()}
    encoder = encoders.build({"name": family, **sizes, **settings, "checkpoint": str(folder)})
    encoder.load_pretrained()
    return encoder.eval()


@of_kind("SigLipVisionTower")
def test_siglip_towers_give_the_original_features(case: dict[str, Any], tmp_path: Path) -> None:
    encoder = tower(case, "siglip", tmp_path)
    assert len(encoder.vision_model.encoder.layers) == case["layers_kept"]
    with torch.no_grad():
        features = encoder(picture(case["input_shape"])).flatten(1, 2)
    assert list(features.shape) == case["full_out_shape"]
    torch.testing.assert_close(features[:, ::9], TENSORS[f"{case['name']}/out"], **TOLERANCE)


@named("clip_4L_sel-2_patch", "clip_4L_sel-1_patch", "clip_4L_sel-2_cls_patch")
def test_clip_towers_give_the_original_features(case: dict[str, Any], tmp_path: Path) -> None:
    encoder = tower(case, "clip", tmp_path, layer=case["select_layer"], select=case["select_feature"])
    with torch.no_grad():
        features = encoder(picture(case["input_shape"])).flatten(1, 2)
    assert encoder.dim == case["hidden_size_property"]
    assert encoder.grid.area == case["num_patches_property"]
    torch.testing.assert_close(features, TENSORS[f"{case['name']}/out"], **TOLERANCE)
