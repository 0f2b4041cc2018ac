"""Tensors that travel from the data worker to the device, everything packed end to end, nothing padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmblocks.shapes import RoutedPlan


@dataclass(frozen=True, slots=True)
class Packing:
    """Where sequences begin and end in a packed row: `cu_seqlens` int32 (sequences + 1,), first 0, last the total."""

    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Packing:
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(ends, max(lengths, default=0))

    @property
    def lengths(self) -> list[int]:
        return self.cu_seqlens.diff().tolist()

    def to(self, device: torch.device | str) -> Packing:
        return replace(self, cu_seqlens=self.cu_seqlens.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples, ready for the model.

    input_ids, position_ids, targets: (tokens,) int64. `targets[i]` is the id that row i must predict, or IGNORE.
    pixels: (views, 3, height, width) uint8, all views of all visuals in order.
    plans: one per visual, in the order of their pixels and of their rows.
    visual_positions: (visual tokens,) int64, the rows of `input_ids` that visual tokens replace, in order.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    packing: Packing
    pixels: Tensor
    plans: tuple[RoutedPlan, ...]
    visual_positions: Tensor

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_labelled(self) -> int:
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            targets=self.targets.to(device),
            packing=self.packing.to(device),
            pixels=self.pixels.to(device),
            visual_positions=self.visual_positions.to(device),
        )


IGNORE = -100
