"""LLaVA's projector types (`mm_projector_type`) and ours, with the names of their tensors."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from mmblocks.model.convert.keys import Table
from mmblocks.projectors.conv_pooler import ConvPooler
from mmblocks.projectors.mlp import MLP, Identity, Linear
from mmblocks.projectors.mlp_residual import ResidualBlock, ResidualMLP

PREFIX = "model.mm_projector."
KNOWN = "linear, mlpNx_gelu, mlpNx_resMx_gelu, pooler and identity"
COUNTED = re.compile(r"mlp([1-9]\d*)x(?:_res([1-9]\d*)x)?_gelu")


def settings_of(kind: str) -> dict[str, Any] | None:
    """Our projector for a type of theirs; None for a type that has none."""
    plain = {"linear": "linear", "identity": "identity", "pooler": "conv_pooler"}
    if kind in plain:
        return {"name": plain[kind]}
    counted = COUNTED.fullmatch(kind)
    if counted is None:
        return None
    depth, blocks = int(counted[1]), counted[2]
    return (
        {"name": "mlp_residual", "depth": depth, "blocks": int(blocks)} if blocks else {"name": "mlp", "depth": depth}
    )


def type_of(projector: Any) -> str | None:
    """Their type for a projector of ours; None when they have none."""
    match projector:
        case MLP():
            return f"mlp{_linears(projector.body) + 1}x_gelu"
        case ResidualMLP():
            blocks = sum(isinstance(layer, ResidualBlock) for layer in projector.body)
            return f"mlp{_linears(projector.body)}x_res{blocks}x_gelu"
        case Linear():
            return "linear"
        case Identity():
            return "identity"
        case ConvPooler(stride=2):
            return "pooler"
    return None


def _linears(body: nn.Module) -> int:
    return sum(isinstance(layer, nn.Linear) for layer in body.children())


def names_of(kind: str) -> Table:
    """Our names of a projector's tensors to theirs. Theirs number layers and activations alike: linears are 0, 2, 4, ..."""
    plain: dict[str, Table] = {
        "identity": {},
        "linear": {"projector.head.": PREFIX},
        "pooler": {"projector.body.0.": f"{PREFIX}conv_pool.", "projector.head.": f"{PREFIX}proj.1."},
    }
    if kind in plain:
        return plain[kind]
    counted = COUNTED.fullmatch(kind)
    assert counted, "settings_of has known it"
    if counted[2]:
        return {"projector.body.": PREFIX}
    last = 2 * (int(counted[1]) - 1)
    body = {f"projector.body.{i}.": f"{PREFIX}{i}." for i in range(0, last, 2)}
    return {**body, "projector.head.": f"{PREFIX}{last}."}
