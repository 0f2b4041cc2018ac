"""Attention of one shape, not packed: torch's own, and on CUDA the order in which its kernels are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmblocks.ops.attention.machine import read_compute_capability
from mmblocks.ops.attention.table import FIXED, OrderKey, order_backends
from mmblocks.ops.choice import REFERENCE, Backend, Op
from mmblocks.reprs import format_by_shape

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
HALF = (torch.float16, torch.bfloat16)
TYPES = {"cudnn": HALF, "flash": HALF, "efficient": (*HALF, torch.float32)}
MAX_HEAD_DIM = {"cudnn": 128, "flash": 256, "efficient": 1 << 16}
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}
"""As of packed attention: roundings of the type; float32 may be multiplied in TF32."""


@dataclass(frozen=True, slots=True)
class FixedCall:
    """An attention that `run` computes by torch's `scaled_dot_product_attention`, and what decides between kernels.

    q: (n, heads, rows, d); k: (n, kv_heads, columns, d).
    """

    run: Callable[[], Tensor]
    q: Tensor
    k: Tensor
    masked: bool
    causal: bool
    learns: bool
    __repr__ = format_by_shape


def reasons_against(kernel: str, call: FixedCall) -> list[str]:
    """Why a kernel cannot take a call."""
    if call.q.device.type != "cuda":
        return [f"it is for CUDA, and the tensors are on {call.q.device.type}"]
    reasons, dim = list(list_unavailable_reasons(kernel)), call.q.shape[-1]
    if call.q.dtype not in TYPES[kernel]:
        reasons.append(f"it does not take {str(call.q.dtype).removeprefix('torch.')}")
    if kernel != "efficient" and call.masked:
        reasons.append("a mask is given")
    if dim % 8 or dim > MAX_HEAD_DIM[kernel]:
        reasons.append(f"head_dim={dim} is no multiple of 8 up to {MAX_HEAD_DIM[kernel]}")
    return reasons


def list_unavailable_reasons(kernel: str) -> list[str]:
    """Why a kernel cannot run on this machine, whatever it is given."""
    here = read_compute_capability()
    if here is None:
        return ["torch sees no CUDA device"]
    if kernel != "efficient" and here < (8, 0):
        return [f"it needs compute capability 8.0, and this is {here[0]}.{here[1]}"]
    if kernel == "cudnn" and not torch.backends.cudnn.is_available():
        return ["torch finds no cuDNN"]
    return []


def _make_backend(kernel: str) -> Backend:
    first = [KERNELS[kernel], *(other for name, other in KERNELS.items() if name != kernel), SDPBackend.MATH]

    def run_kernel(call: FixedCall) -> Tensor:
        with sdpa_kernel(first, set_priority=True):
            return call.run()

    return Backend(
        kernel,
        run_kernel,
        lambda call: reasons_against(kernel, call),
        unavailable_reasons=lambda: list_unavailable_reasons(kernel),
    )


def _order_for_call(call: FixedCall) -> tuple[str, ...]:
    grouped = call.q.shape[1] != call.k.shape[1]
    return order_backends(
        OrderKey(FIXED, read_compute_capability(), call.q.shape[-1], call.causal, call.learns, grouped)
    )


OP = Op(
    FIXED,
    [*map(_make_backend, KERNELS), Backend(REFERENCE, lambda call: call.run(), lambda call: [])],
    order=_order_for_call,
)
"""The reference is torch's own choice between its kernels."""
