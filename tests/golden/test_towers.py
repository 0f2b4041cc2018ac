"""Vision towers and projectors against outputs of the original LLaVA-NeXT code (tests/golden/modules.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmblocks.components import encoders, projectors

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


def projected(case: dict[str, Any], projector: Any) -> Tensor:
    (views, cells, _), side = case["input_shape"], math.isqrt(case["input_shape"][1])
    x = picture(case["input_shape"])
    with torch.no_grad():
        return projector(x.view(views, side, side, -1)).view(views, cells, -1)


def mlp_keys(depth: int) -> dict[str, str]:
    """Ours by the original's: linear layers stand at 0, 2, 4, ... of one sequence there; here the last is the head."""
    there = {f"{2 * i}.": f"body.{2 * i}." for i in range(depth - 1)} | {f"{2 * (depth - 1)}.": "head."}
    return {old + end: new + end for old, new in there.items() for end in ("weight", "bias")}


@named("projector_mlp1x_gelu", "projector_mlp2x_gelu", "projector_mlp3x_gelu")
def test_mlp_projectors_give_the_original_features(case: dict[str, Any]) -> None:
    depth = len(weights(case)) // 2
    projector = projectors.build("mlp", in_dim=case["mm_hidden_size"], out_dim=case["hidden_size"], depth=depth)
    keys = mlp_keys(depth)
    projector.load_state_dict({keys[k]: v for k, v in weights(case).items()})
    torch.testing.assert_close(projected(case, projector), TENSORS[f"{case['name']}/out"], **TOLERANCE)


@named("projector_linear")
def test_the_linear_projector_gives_the_original_features(case: dict[str, Any]) -> None:
    projector = projectors.build("linear", in_dim=case["mm_hidden_size"], out_dim=case["hidden_size"])
    projector.load_state_dict({f"head.{k}": v for k, v in weights(case).items()})
    torch.testing.assert_close(projected(case, projector), TENSORS[f"{case['name']}/out"], **TOLERANCE)


@named("projector_identity")
def test_the_identity_projector_passes_features_on(case: dict[str, Any]) -> None:
    projector = projectors.build("identity", in_dim=case["mm_hidden_size"], out_dim=case["mm_hidden_size"])
    assert torch.equal(projected(case, projector), TENSORS[f"{case['name']}/out"])
