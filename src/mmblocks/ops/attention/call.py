"""What one packed attention is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmblocks.reprs import format_by_shape


@dataclass(frozen=True, slots=True)
class PackedCall:
    """The arguments of `attend`, with both packings apart and what decides between ways.

    q: (tokens, heads, d); k: (key tokens, kv_heads, d); v: (key tokens, kv_heads, value_dim). ends_q, ends_k: int32
    cumulative lengths; max_q, max_k: no sequence is longer, some may be none that long. `window` has its effect with
    `causal` only. `learns`: a gradient will be asked for. `capped`, `sinks`: scores are changed before the softmax.
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
    capped: bool = False
    sinks: bool = False
    __repr__ = format_by_shape

    @property
    def group_size(self) -> int:
        """How many query heads share a head of keys."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def is_empty(self) -> bool:
        return not (self.q.numel() and self.k.numel())

    @property
    def window_left(self) -> int | None:
        """How many keys before its own place a token sees; None for all of them."""
        local = self.causal and self.window is not None and self.window < self.max_k
        return self.window - 1 if local and self.window is not None else None
