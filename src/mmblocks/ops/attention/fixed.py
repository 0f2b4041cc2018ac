"""Attention of one shape, not packed: torch's own, and on CUDA the order in which its kernels are tried."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmblocks.ops.attention.call import read_compute_capability, reasons_against_ampere_kernel
from mmblocks.ops.attention.order import FIXED, OrderKey, order_backends
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
from mmblocks.reprs import format_by_shape, format_dtype

HALF = (torch.float16, torch.bfloat16)


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

    @property
    def order_key(self) -> OrderKey:
        head_dim, grouped = self.q.shape[-1], self.q.shape[1] != self.k.shape[1]
        return OrderKey(FIXED, read_compute_capability(), head_dim, self.causal, self.learns, grouped)


@dataclass(frozen=True, slots=True)
class SDPAKernel:
    """One of torch's kernels and its limits."""

    name: str
    backend: SDPBackend
    dtypes: tuple[torch.dtype, ...]
    max_head_dim: int

    def run(self, call: FixedCall) -> Tensor:
        """By this kernel, or by another where it refuses."""
        others = [kernel.backend for kernel in KERNELS if kernel is not self]
        with sdpa_kernel([self.backend, *others, SDPBackend.MATH], set_priority=True):
            return call.run()

    def reasons_against(self, call: FixedCall) -> list[str]:
        """Why it cannot take a call."""
        if call.q.device.type != "cuda":
            return [f"it is for CUDA, and the tensors are on {call.q.device.type}"]
        reasons, dim = self.list_unavailable_reasons(), call.q.shape[-1]
        if call.q.dtype not in self.dtypes:
            reasons.append(f"it does not take {format_dtype(call.q.dtype)}")
        if self.name != "efficient" and call.masked:
            reasons.append("a mask is given")
        if dim % 8 or dim > self.max_head_dim:
            reasons.append(f"head_dim={dim} is no multiple of 8 up to {self.max_head_dim}")
        return reasons

    def list_unavailable_reasons(self) -> list[str]:
        """Why it cannot run on this machine, whatever the inputs."""
        if self.name == "efficient":
            return [] if read_compute_capability() else ["torch sees no CUDA device"]
        if reasons := reasons_against_ampere_kernel():
            return reasons
        missing = self.name == "cudnn" and not torch.backends.cudnn.is_available()
        return ["torch finds no cuDNN"] if missing else []


KERNELS = (
    SDPAKernel("cudnn", SDPBackend.CUDNN_ATTENTION, HALF, 128),
    SDPAKernel("flash", SDPBackend.FLASH_ATTENTION, HALF, 256),
    SDPAKernel("efficient", SDPBackend.EFFICIENT_ATTENTION, (*HALF, torch.float32), 1 << 16),
)
TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}
"""As of packed attention: roundings of the dtype; float32 may be multiplied in TF32."""


OP = Op(
    FIXED,
    [
        *(
            Backend(k.name, k.run, k.reasons_against, k.list_unavailable_reasons, tolerances=TOLERANCES)
            for k in KERNELS
        ),
        Backend(REFERENCE, lambda call: call.run(), accept_all_inputs),
    ],
    order=lambda call: order_backends(call.order_key),
)
"""The reference is torch's own choice between its kernels."""
