"""The inputs of packed attention, and the requirements that all fused kernels share."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mmblocks.ops.attention.order import PACKED, OrderKey
from mmblocks.reprs import format_by_shape


@dataclass(frozen=True, slots=True)
class PackedCall:
    """The arguments of `attend`, with both packings taken apart.

    q: (tokens, heads, d); k: (key tokens, kv_heads, d); v: (key tokens, kv_heads, value_dim). ends_q, ends_k: int32
    cumulative lengths; max_q, max_k: no sequence is longer, all may be shorter. `window` has an effect with `causal`
    only. `learns`: a gradient may follow.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ends_q: Tensor
    ends_k: Tensor
    max_q: int
    max_k: int
    causal: bool
    scale: float
    window: int | None = None
    learns: bool = False
    softcap: float | None = None
    sinks: Tensor | None = None
    __repr__ = format_by_shape

    @property
    def group_size(self) -> int:
        """How many query heads share a head of keys."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def order_key(self) -> OrderKey:
        head_dim, grouped = self.q.shape[-1], self.group_size > 1
        return OrderKey(PACKED, read_compute_capability(), head_dim, self.causal, self.learns, grouped)

    @property
    def is_empty(self) -> bool:
        return not (self.q.numel() and self.k.numel())

    @property
    def window_left(self) -> int | None:
        """How many keys before its own position a token sees; None for all of them."""
        local = self.causal and self.window is not None and self.window < self.max_k
        return self.window - 1 if local and self.window is not None else None


@cache
def read_compute_capability() -> tuple[int, int] | None:
    """Compute capability of the current CUDA device, None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def reasons_against_ampere_kernel() -> list[str]:
    """Why a kernel for compute capability 8.0 and above cannot run on this machine."""
    here = read_compute_capability()
    if here is None:
        return ["torch sees no CUDA device"]
    return [] if here >= (8, 0) else [f"it needs compute capability 8.0, and this is {here[0]}.{here[1]}"]


def reasons_against_features(call: PackedCall) -> list[str]:
    """What only the reference implementation can do."""
    reasons = []
    if call.softcap is not None:
        reasons.append("it has no softcap")
    if call.sinks is not None:
        reasons.append("it has no sinks")
    if call.q.shape[-1] != call.v.shape[-1]:
        reasons.append(f"values are {call.v.shape[-1]} wide and keys {call.q.shape[-1]}; it takes equal widths")
    if len({call.q.dtype, call.k.dtype, call.v.dtype}) > 1:
        reasons.append("queries, keys and values differ in dtype")
    return reasons
