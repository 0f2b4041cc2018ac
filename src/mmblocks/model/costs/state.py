"""Bytes of weights, gradients and optimizer state: what stays in memory from step to step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from torch import Tensor

FLOAT32_BYTES = 4
STORED_BYTES = 2
"""Of a weight and of a cached key or value outside of training, where a model is bfloat16."""


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes that one process holds between steps. Weights, gradients and both moments of Adam are float32 in training,
    frozen weights too. copies: frozen copies of weights (a reference model, a moving average).
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.copies

    @classmethod
    def from_numbers(
        cls, stored: int, learning: int, *, copies: int = 0, quantized: int = 0, code_bytes: int = 0
    ) -> StateBytes:
        """From numbers of weights: `stored` in all, of which `learning` are trained and `quantized` are kept in
        `code_bytes` instead; `copies` are further weights.
        """
        return cls(
            weights=FLOAT32_BYTES * (stored - quantized) + code_bytes,
            gradients=FLOAT32_BYTES * learning,
            optimizer=2 * FLOAT32_BYTES * learning,
            copies=FLOAT32_BYTES * copies,
        )


def count_shard_elements(parameter: Tensor, ranks: int) -> int:
    """Numbers of a parameter on one of `ranks` processes: FSDP2 deals out its first dimension in equal, padded parts."""
    if not parameter.ndim or ranks == 1:
        return parameter.numel()
    return ceil(parameter.shape[0] / ranks) * (parameter.numel() // max(parameter.shape[0], 1))


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of weights: in all and of those that learn, whole and as one process' share."""

    whole: int
    learning: int
    share: int
    learning_share: int

    @classmethod
    def from_parameters(cls, parameters: Iterable[Tensor], ranks: int = 1) -> ParameterCount:
        counts = [(p.numel(), count_shard_elements(p, ranks), p.requires_grad) for p in parameters]
        return cls(
            whole=sum(whole for whole, _, _ in counts),
            learning=sum(whole for whole, _, learns in counts if learns),
            share=sum(share for _, share, _ in counts),
            learning_share=sum(share for _, share, learns in counts if learns),
        )
