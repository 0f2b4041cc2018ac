"""Perceiver and Q-Former against outputs of LLaVA-NeXT's own resamplers (tests/golden/modules.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmblocks.components import projectors
from mmblocks.shapes import Size

HERE = Path(__file__).parent
CASES: dict[str, Any] = {c["name"]: c for c in json.loads((HERE / "modules.json").read_text())["cases"]}
TENSORS = load_file(HERE / "modules.safetensors")
TOLERANCE = {"rtol": 0, "atol": 1e-4}  # stated with the data: another transformers, other matrix kernels
ON_QFORMER = {  # ours by the original's; queries and their norm stand outside of BERT's encoder here
    "Qformer.bert.embeddings.LayerNorm.": "qformer.layernorm.",
    "Qformer.bert.": "qformer.",
    "ttention.self.": "ttention.attention.",
}


def features(case: dict[str, Any]) -> Tensor:
    """(views, rows, columns, dim), the numbers that the original was given."""
    views, cells, dim = case["input_shape"]
    k = torch.arange(views * cells * dim, dtype=torch.float64)
    return ((k * 37 % 251) / 125.5 - 1).float().view(views, math.isqrt(cells), -1, dim)


def weights(name: str, renamed: dict[str, str]) -> dict[str, Tensor]:
    found = {k.removeprefix(f"{name}/w/"): v for k, v in TENSORS.items() if k.startswith(f"{name}/w/")}
    for old, new in renamed.items():
        found = {k.replace(old, new): v for k, v in found.items()}
    return found


@torch.no_grad()
def resampled(name: str, component: str, renamed: dict[str, str], **settings: Any) -> Tensor:
    """What the component makes before its linear map, with the original's weights."""
    case = CASES[name]
    wired = {"in_dim": case["input_shape"][-1], "out_dim": 12, "grid": Size(3, 3)}
    projector = projectors.build({"name": component, **settings}, **wired).eval()
    projector.body.load_state_dict(weights(name, renamed))
    return projector.body(features(case)).squeeze(1)


def test_the_perceiver_gives_the_original_latents() -> None:
    name = "resampler_perceiver_2_5"
    got = resampled(name, "perceiver", {"perceiver.": ""}, queries=5, depth=2, ff_mult=2)
    torch.testing.assert_close(got, TENSORS[f"{name}/out"], **TOLERANCE)


def test_the_qformer_gives_the_original_queries() -> None:
    name = "resampler_qformer_2_5"
    sizes = {"dim": 16, "depth": 4, "heads": 2, "mlp_dim": 32, "cross_every": 2}
    got = resampled(name, "qformer", ON_QFORMER, queries=5, **sizes)
    torch.testing.assert_close(got, TENSORS[f"{name}/out"], **TOLERANCE)
