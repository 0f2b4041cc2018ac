"""LLaVA's projector types (`mm_projector_type`) and ours, with the names of their tensors."""

import re
from typing import Any

from torch import nn

from mmblocks.model.convert.keys import NameTable
from mmblocks.projectors.conv_pooler import ConvPooler
from mmblocks.projectors.mlp import MLP, Identity, Linear
from mmblocks.projectors.mlp_residual import ResidualBlock, ResidualMLP

PREFIX = "model.mm_projector."
KNOWN_TYPES = "linear, mlpNx_gelu, mlpNx_resMx_gelu, pooler and identity"
MLP_TYPE = re.compile(r"mlp([1-9]\d*)x(?:_res([1-9]\d*)x)?_gelu")


def make_projector_settings(kind: str) -> dict[str, Any] | None:
    """Settings of our projector for a type of theirs; None for an unknown type."""
    plain = {"linear": "linear", "identity": "identity", "pooler": "conv_pooler"}
    if kind in plain:
        return {"name": plain[kind]}
    counted = MLP_TYPE.fullmatch(kind)
    if counted is None:
        return None
    depth, blocks = int(counted[1]), counted[2]
    return (
        {"name": "mlp_residual", "depth": depth, "blocks": int(blocks)} if blocks else {"name": "mlp", "depth": depth}
    )


def find_projector_type(projector: object) -> str | None:
    """Their type for a projector of ours; None when they have none."""
    match projector:
        case MLP():
            return f"mlp{_count_linears(projector.body) + 1}x_gelu"
        case ResidualMLP():
            blocks = sum(isinstance(layer, ResidualBlock) for layer in projector.body)
            return f"mlp{_count_linears(projector.body)}x_res{blocks}x_gelu"
        case Linear():
            return "linear"
        case Identity():
            return "identity"
        case ConvPooler(stride=2):
            return "pooler"
    return None


def _count_linears(body: nn.Module) -> int:
    return sum(isinstance(layer, nn.Linear) for layer in body.children())


def make_name_table(kind: str) -> NameTable:
    """Our names of a projector's tensors -> theirs, which number activations too: linear layers are 0, 2, 4, ..."""
    plain: dict[str, NameTable] = {
        "identity": {},
        "linear": {"projector.head.": PREFIX},
        "pooler": {"projector.body.0.": f"{PREFIX}conv_pool.", "projector.head.": f"{PREFIX}proj.1."},
    }
    if kind in plain:
        return plain[kind]
    counted = MLP_TYPE.fullmatch(kind)
    assert counted, "make_projector_settings knows it"
    if counted[2]:
        return {"projector.body.": PREFIX}
    last = 2 * (int(counted[1]) - 1)
    body = {f"projector.body.{i}.": f"{PREFIX}{i}." for i in range(0, last, 2)}
    return {**body, "projector.head.": f"{PREFIX}{last}."}
