"""The fused norm, gate and rotary embedding of a decoder layer, beside transformers' own code and Liger's kernels.

For a GPU: on a CPU a layer runs transformers' own code, and these rows time the references of the ops.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.ops.gated_product import multiply_gated
from mmblocks.ops.rms_norm import rms_norm
from mmblocks.ops.rotary import rotate
from tests.bench.suites.ceil import measure_copy_rate
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, require_equal

NAME = "layer_kernels"
EPSILON = 1e-6
Compute = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of a decoder layer."""

    name: str
    tokens: int
    dim: int
    mlp_dim: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape. learned: how many of the inputs get a gradient. passes: how often forward, and forward and
    backward, move as many bytes as the inputs that are learned have."""

    scenario: str
    inputs: Sequence[Tensor]
    learned: int
    passes: tuple[float, float]
    ours: Compute
    own: Compute
    liger: Compute


def measure(run: Run) -> Iterator[Row]:
    """The naive side is transformers' own code, the best one that code compiled or Liger's kernels where installed."""
    ceiling = measure_copy_rate(run)
    for shape in list_shapes(run):
        for case in make_cases(shape, run):
            run.require_time(10, case.scenario)
            yield from _measure_case(run, case, ceiling)


def list_shapes(run: Run) -> list[LayerShape]:
    """The decoder layers of Qwen2 0.5B and 7B, with one packed row of tokens; on a CPU a tiny one."""
    if not run.on_gpu:
        return [LayerShape("tiny", 64, 32, 48, 4, 2, 8)]
    return [LayerShape("0.5B", 16_384, 896, 4864, 14, 2, 64), LayerShape("7B", 16_384, 3584, 18_944, 28, 4, 128)]


def make_cases(shape: LayerShape, run: Run) -> Iterator[Case]:
    """Norm, gate and rotary embedding of a layer."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes).to(run.device, run.dtype)

    norm = Qwen2RMSNorm(shape.dim, EPSILON).to(run.device, run.dtype)
    yield Case(
        f"norm of {shape.tokens} rows, {shape.name}",
        [draw(1, shape.tokens, shape.dim), draw(shape.dim)],
        2,
        (2, 5),
        lambda x, weight: rms_norm(x, weight, eps=EPSILON),
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x),
        _compute_liger_norm,
    )
    yield Case(
        f"SwiGLU of {shape.tokens} rows, {shape.name}",
        [draw(1, shape.tokens, shape.mlp_dim) for _ in range(2)],
        2,
        (1.5, 4),
        multiply_gated,
        lambda gate, up: F.silu(gate) * up,
        _compute_liger_gate,
    )
    q, k = (draw(1, shape.tokens, heads, shape.head_dim).transpose(1, 2) for heads in (shape.heads, shape.kv_heads))
    angles = torch.rand(1, shape.tokens, shape.head_dim // 2).repeat(1, 1, 2) * 6
    tables = [table.to(run.device, run.dtype) for table in (angles.cos(), angles.sin())]
    yield Case(
        f"rotary embedding of {shape.tokens} rows, {shape.name}",
        [q, k, *tables],
        2,
        (2, 4),
        lambda *inputs: torch.cat(rotate(*inputs), dim=1),
        lambda *inputs: torch.cat(apply_rotary_pos_emb(*inputs), dim=1),
        _compute_liger_rotary,
    )


def _measure_case(run: Run, case: Case, ceiling: float) -> Iterator[Row]:
    exact = None if run.dtype == torch.float32 else case.own(*(x.float() for x in case.inputs))
    error = require_equal(NAME, case.ours(*case.inputs), case.own(*case.inputs), exact)
    size = sum(x.numel() * x.element_size() for x in case.inputs[: case.learned])
    for quantity, make_call, passes in (
        ("forward", _make_forward_call, case.passes[0]),
        ("forward and backward", _make_backward_call, case.passes[1]),
    ):
        peers = [Peer("naive", "transformers' own code", make_call(case, case.own))]
        if run.on_gpu:
            peers.append(Peer("best", "the same, compiled", make_call(case, torch.compile(case.own))))
        if run.on_gpu and find_spec("liger_kernel") is not None:
            peers.append(Peer("best", "liger-kernel", make_call(case, case.liger)))
        yield from compare_times(
            run,
            NAME,
            case.scenario,
            quantity,
            make_call(case, case.ours),
            peers,
            error=error,
            floor_s=passes * size / ceiling,
        )


def _make_forward_call(case: Case, compute: Compute) -> Callable[[int], object]:
    return lambda _: compute(*case.inputs)


def _make_backward_call(case: Case, compute: Compute) -> Callable[[int], object]:
    learned = [x.detach().requires_grad_() for x in case.inputs[: case.learned]]
    inputs = [*learned, *case.inputs[case.learned :]]
    pulled = torch.ones_like(case.own(*case.inputs))
    return lambda _: torch.autograd.grad(compute(*inputs), learned, pulled)


# Liger --------------------------------------------------------------------------------------------------------------


def _find_liger(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name)


def _compute_liger_norm(x: Tensor, weight: Tensor) -> Tensor:
    return _find_liger("rms_norm", "LigerRMSNormFunction").apply(x, weight, EPSILON, 0.0, "llama", False)


def _compute_liger_gate(gate: Tensor, up: Tensor) -> Tensor:
    return _find_liger("swiglu", "LigerSiLUMulFunction").apply(gate, up)


def _compute_liger_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotate_in_place = _find_liger("rope", "LigerRopeFunction").apply
    return torch.cat(rotate_in_place(q.clone(), k.clone(), cos, sin), dim=1)
