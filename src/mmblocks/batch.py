"""Tensors that travel from the data worker to the device, everything packed end to end, nothing padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.shapes import RoutedPlan, Size


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
class Instructions:
    """What was asked about each view, for projectors that read it: their own tokenizer's ids, not the backbone's.

    ids: (views, length) int64, shorter questions filled up behind. mask: (views, length) bool, True for real words.
    """

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, words: Sequence[Tensor]) -> Instructions:
        """One row of ids per view, any of them empty."""
        length = max(map(len, words), default=0)
        ids = torch.stack([F.pad(row, (0, length - len(row))) for row in words]) if words else torch.empty(0, 0)
        sizes = torch.tensor([len(row) for row in words], dtype=torch.int64)
        return cls(ids.to(torch.int64), torch.arange(length) < sizes[:, None])

    @classmethod
    def none(cls, views: int) -> Instructions:
        """Nothing was asked about any view."""
        return cls(torch.empty(views, 0, dtype=torch.int64), torch.empty(views, 0, dtype=torch.bool))

    def split(self, counts: Sequence[int]) -> list[Instructions]:
        """The same for groups of `counts` views."""
        pairs = zip(self.ids.split(list(counts)), self.mask.split(list(counts)), strict=True)
        return [Instructions(ids, mask) for ids, mask in pairs]

    def to(self, device: torch.device | str) -> Instructions:
        return Instructions(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples, ready for the model.

    input_ids, position_ids, targets: (tokens,) int64. `targets[i]` is the id that row i must predict, or IGNORE.
    pixels: (views, 3, height, width) uint8, all views of all visuals in order.
    plans: one per visual, in the order of their pixels and of their rows.
    visual_positions: (visual tokens,) int64, the rows of `input_ids` that visual tokens replace, in order.
    instructions: what was asked about each view, where the model's projector reads it.
    features: (views, rows, columns, dim), what a frozen encoder once made of the views; `pixels` are not read then.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    packing: Packing
    pixels: Tensor
    plans: tuple[RoutedPlan, ...]
    visual_positions: Tensor
    instructions: Instructions | None = None
    features: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_labelled(self) -> int:
        return int((self.targets != IGNORE).sum())

    @property
    def num_views(self) -> int:
        return len(self.pixels if self.features is None else self.features)

    def with_blank_view(self, view_px: Size) -> Batch:
        """The same for a batch without views: a black one that is encoded and takes no place in the sequence."""
        if self.num_views:
            return self
        blank = self.pixels.new_zeros(1, 3, *view_px)
        features = None if self.features is None else self.features.new_zeros(1, *self.features.shape[1:])
        return replace(self, pixels=blank, instructions=Instructions.none(1).to(blank.device), features=features)

    @classmethod
    def empty(cls, view_px: Size, features: Tensor | None = None) -> Batch:
        """A batch from which nothing is learned: two sequences of one token without a target.

        features: (0, rows, columns, dim) where the other batches carry features.
        """
        nothing = torch.zeros(2, dtype=torch.int64)
        return cls(
            input_ids=nothing,
            position_ids=nothing,
            targets=torch.full((2,), IGNORE),
            packing=Packing.of([1, 1]),
            pixels=torch.empty(0, 3, *view_px, dtype=torch.uint8),
            plans=(),
            visual_positions=torch.empty(0, dtype=torch.int64),
            features=features,
        )

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            targets=self.targets.to(device),
            packing=self.packing.to(device),
            pixels=self.pixels.to(device),
            visual_positions=self.visual_positions.to(device),
            instructions=None if self.instructions is None else self.instructions.to(device),
            features=None if self.features is None else self.features.to(device),
        )


IGNORE = -100
