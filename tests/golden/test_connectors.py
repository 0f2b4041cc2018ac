"""Projectors and poolings against projectors and resamplers of the original LLaVA-NeXT code (tests/golden/modules.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmblocks.components import poolings, projectors

HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case
    for case in json.loads((HERE / "modules.json").read_text())["cases"]
    if case["kind"] in ("projector", "resampler")
}
TENSORS = load_file(HERE / "modules.safetensors")
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # fp32: other kernels sum in another order


def features(name: str) -> Tensor:
    """The case's input on its square grid: (views, side, side, dim)."""
    views, cells, dim = CASES[name]["input_shape"]
    k = torch.arange(views * cells * dim, dtype=torch.float64)
    return ((k * 37 % 251) / 125.5 - 1).float().view(views, math.isqrt(cells), math.isqrt(cells), dim)


def weights(name: str) -> dict[str, Tensor]:
    prefix = f"{name}/w/"
    return {k.removeprefix(prefix): v for k, v in TENSORS.items() if k.startswith(prefix)}


def projector(name: str, spec: Any, places: dict[str, str]) -> Any:
    """Built for the case, with its weights; `places` are ours by the original's."""
    made = projectors.build(spec, in_dim=CASES[name]["input_shape"][-1], out_dim=CASES[name]["out_shape"][-1]).eval()
    renamed = {}
    for key, tensor in weights(name).items():
        place, _, end = key.rpartition(".")
        renamed[f"{places.get(place, place)}.{end}"] = tensor
    made.load_state_dict(renamed)
    return made


def assert_as_the_original(name: str, module: Any) -> None:
    """The tokens of the case, in its order."""
    with torch.no_grad():
        got = module(features(name)).flatten(1, 2)
    torch.testing.assert_close(got, TENSORS[f"{name}/out"], **TOLERANCE)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mlp_projectors_give_the_original_features(depth: int) -> None:
    name, last = f"projector_mlp{depth}x_gelu", 2 * (depth - 1)
    places = {str(i): f"body.{i}" for i in range(0, last, 2)} | {str(last): "head"}
    assert_as_the_original(name, projector(name, {"name": "mlp", "depth": depth}, places))


def test_the_linear_projector_gives_the_original_features() -> None:
    assert_as_the_original("projector_linear", projector("projector_linear", "linear", {"": "head"}))


def test_the_identity_projector_passes_features_on() -> None:
    assert torch.equal(
        projector("projector_identity", "identity", {})(features("projector_identity")).flatten(1, 2),
        TENSORS["projector_identity/out"],
    )


def test_residual_blocks_after_the_mlp_give_the_original_features() -> None:
    name = "projector_mlp2x_res2x_gelu"
    places = {key.rpartition(".")[0]: f"body.{key.rpartition('.')[0]}" for key in CASES[name]["weights"]}
    assert_as_the_original(name, projector(name, {"name": "mlp_residual", "depth": 2, "blocks": 2}, places))


def test_the_pooler_gives_the_original_features() -> None:
    places = {"conv_pool": "body.0", "proj.1": "head"}
    assert_as_the_original("projector_pooler", projector("projector_pooler", "conv_pooler", places))


def test_a_strided_convolution_gives_what_the_spatial_pool_gave() -> None:
    """The resampler alone: the MLP behind it here is LLaVA's projector, which has cases of its own."""
    name = "resampler_spatial_pool_conv_2"
    channels = CASES[name]["config"]["mm_spatial_pool_out_channels"]
    made = projectors.build({"name": "strided_conv", "stride": 2, "channels": channels}, in_dim=8, out_dim=7)
    made.body[0].load_state_dict({key.removeprefix("pool."): tensor for key, tensor in weights(name).items()})
    assert_as_the_original(name, made.body[0])


@pytest.mark.parametrize("mode", ["average", "max"])
def test_poolings_give_what_the_spatial_pool_gave(mode: str) -> None:
    assert_as_the_original(f"resampler_spatial_pool_{mode}_2", poolings.build(mode, stride=2))


def test_masked_drop_drops_nothing_in_evaluation() -> None:
    """The resampler passes features on; here its rows meet the MLP as they are."""
    name = "resampler_masked_drop_eval"
    assert torch.equal(features(name).flatten(1, 2), TENSORS[f"{name}/out"])
    masked = projectors.build("masked_drop", in_dim=8, out_dim=7).eval()
    mlp = projectors.build("mlp", in_dim=8, out_dim=7)
    mlp.load_state_dict(masked.state_dict())
    assert torch.equal(masked(features(name)), mlp(features(name)))


def test_every_projector_and_resampler_of_the_original_has_a_test() -> None:
    learned_queries = {name for name in CASES if name.startswith(("resampler_perceiver", "resampler_qformer"))}
    text = Path(__file__).read_text(encoding="utf-8")
    for name in CASES.keys() - learned_queries:
        family = name.removesuffix("_average_2").removesuffix("_max_2")
        assert family in text or family.startswith("projector_mlp"), name
