"""Tensors that travel from the data worker to the device, everything packed end to end, nothing padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.reprs import format_by_shape
from mmblocks.shapes import RoutedPlan, Size


@dataclass(frozen=True, slots=True)
class Packing:
    """Where sequences begin and end in a packed row: `cu_seqlens` int32 (sequences + 1,), first 0, last the total."""

    cu_seqlens: Tensor
    max_seqlen: int
    __repr__ = format_by_shape

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Packing:
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(ends, max(lengths, default=0))

    @property
    def lengths(self) -> list[int]:
        return self.cu_seqlens.diff().tolist()

    def to(self, device: torch.device | str) -> Packing:
        return replace(self, cu_seqlens=self.cu_seqlens.to(device))


@dataclass(frozen=True, slots=True)
class Instructions:
    """What was asked about each image, for projectors that read it: their own tokenizer's ids, not the backbone's.

    ids: (images, length) int64, shorter questions filled up behind. mask: (images, length) bool, True for real words.
    """

    ids: Tensor
    mask: Tensor
    __repr__ = format_by_shape

    @classmethod
    def from_ids(cls, words: Sequence[Tensor]) -> Instructions:
        """One row of ids per image, any of them empty."""
        length = max(map(len, words), default=0)
        ids = torch.stack([F.pad(row, (0, length - len(row))) for row in words]) if words else torch.empty(0, 0)
        sizes = torch.tensor([len(row) for row in words], dtype=torch.int64)
        return cls(ids.to(torch.int64), torch.arange(length) < sizes[:, None])

    @classmethod
    def make_empty(cls, views: int) -> Instructions:
        """Nothing was asked about any view."""
        return cls(torch.empty(views, 0, dtype=torch.int64), torch.empty(views, 0, dtype=torch.bool))

    def split_by_counts(self, counts: Sequence[int]) -> list[Instructions]:
        """The same for groups of `counts` views."""
        pairs = zip(self.ids.split(list(counts)), self.mask.split(list(counts)), strict=True)
        return [Instructions(ids, mask) for ids, mask in pairs]

    def select_views(self, views: Tensor) -> Instructions:
        """One row for each of `views`, the number of its image."""
        return Instructions(self.ids[views], self.mask[views])

    def to(self, device: torch.device | str) -> Instructions:
        return Instructions(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Some rows of a packed batch, ascending: `index` int64 (n,), and on the host how many belong to each sequence.

    places, ends: the index and the cumulative lengths of the packing once more, on the host, where they were looked up
    there: what they decide need not wait for a device then.
    """

    index: Tensor
    counts: tuple[int, ...]
    index_host: tuple[int, ...] | None = None
    cu_seqlens_host: tuple[int, ...] | None = None
    __repr__ = format_by_shape

    @classmethod
    def from_targets(cls, targets: Tensor, packing: Packing) -> RowIndex:
        """The rows that have a target."""
        index = (targets != IGNORE).nonzero().squeeze(1)
        counts = torch.searchsorted(index, packing.cu_seqlens.to(index)).diff()
        return cls(index, tuple(counts.tolist()), tuple(index.tolist()), tuple(packing.cu_seqlens.tolist()))

    def __len__(self) -> int:
        return sum(self.counts)

    def to(self, device: torch.device | str) -> RowIndex:
        return replace(self, index=self.index.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class GatherTable:
    """Rows made of other rows: row i is the sum over j of weights[i, j] * x[rows[i, j]]. Weight 0 reads nothing.

    rows: int64 (n, k); weights: float32 (n, k); size: how many rows x has.
    back: the same turned round, taps of x's gradient from the result's (size, k2), where it was made beforehand.
    """

    rows: Tensor
    weights: Tensor
    size: int
    transpose: GatherTable | None = None
    __repr__ = format_by_shape

    def to(self, device: torch.device | str) -> GatherTable:
        return replace(
            self,
            rows=self.rows.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            transpose=None if self.transpose is None else self.transpose.to(device),
        )


@dataclass(frozen=True, slots=True)
class GatherLayout:
    """How the visual rows of a batch are made of the encoder's cells, in integers, for all visuals at once.

    cells: what the projector's body reads, out of the encoder's cells (images * rows * columns); None where it reads
        them all, as maps. taps: visual rows out of the body's cells. positions: int64, the place of each of these rows in
        the sequence. marks: int64, for each learned row its number among the model's marks; mark_positions: their places.
    """

    cell_table: GatherTable | None
    token_table: GatherTable
    positions: Tensor
    learned_token_ids: Tensor
    learned_token_positions: Tensor
    __repr__ = format_by_shape

    def to(self, device: torch.device | str) -> GatherLayout:
        return GatherLayout(
            None if self.cell_table is None else self.cell_table.to(device),
            self.token_table.to(device),
            self.positions.to(device, non_blocking=True),
            self.learned_token_ids.to(device, non_blocking=True),
            self.learned_token_positions.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples, ready for the model.

    input_ids, position_ids, targets: (tokens,) int64. `targets[i]` is the id that row i must predict, or IGNORE.
    pixels: (images, 3, height, width) uint8, the views of all visuals in order, equal views of a visual once.
    plans: one per visual, in the order of their pixels and of their rows.
    visual_positions: (visual tokens,) int64, the rows of `input_ids` that visual tokens replace, in order.
    instructions: what was asked about each image, where the model's projector reads it.
    features: (images, rows, columns, dim), what a frozen encoder once made of them; `pixels` are not read then.
    views: (views of all plans,) int64, which image each view is; None where every view is an image of its own.
    layout: how visual rows are made of features, in integers; None where a tokenizer cannot say.
    labelled: the rows that have a target, where they were looked up beforehand; `learned` gives them in any case.
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
    views: Tensor | None = None
    layout: GatherLayout | None = None
    precomputed_target_rows: RowIndex | None = None
    __repr__ = format_by_shape

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def target_rows(self) -> RowIndex:
        """The rows that have a target."""
        return (
            RowIndex.from_targets(self.targets, self.packing)
            if self.precomputed_target_rows is None
            else self.precomputed_target_rows
        )

    @property
    def num_labelled(self) -> int:
        return len(self.target_rows)

    @property
    def num_views(self) -> int:
        """Images that are encoded: views, equal ones of a visual once."""
        return len(self.pixels if self.features is None else self.features)

    def with_all_views(self) -> Batch:
        """The same with an image for every view of every plan, for those who exchange images; it has no layout."""
        if self.views is None:
            return self
        asked = self.instructions
        return replace(
            self,
            pixels=self.pixels[self.views] if len(self.pixels) else self.pixels,
            instructions=None if asked is None else asked.select_views(self.views),
            features=None if self.features is None else self.features[self.views],
            views=None,
            layout=None,
        )

    def with_blank_view(self, view_px: Size) -> Batch:
        """The same for a batch without views: a black one that is encoded and takes no place in the sequence."""
        if self.num_views:
            return self
        blank = self.pixels.new_zeros(1, 3, *view_px)
        features = None if self.features is None else self.features.new_zeros(1, *self.features.shape[1:])
        return replace(self, pixels=blank, instructions=Instructions.make_empty(1).to(blank.device), features=features)

    @classmethod
    def make_empty(cls, view_px: Size, features: Tensor | None = None) -> Batch:
        """A batch from which nothing is learned: two sequences of one token without a target.

        features: (0, rows, columns, dim) where the other batches carry features.
        """
        nothing = torch.zeros(2, dtype=torch.int64)
        return cls(
            input_ids=nothing,
            position_ids=nothing,
            targets=torch.full((2,), IGNORE),
            packing=Packing.from_lengths([1, 1]),
            pixels=torch.empty(0, 3, *view_px, dtype=torch.uint8),
            plans=(),
            visual_positions=torch.empty(0, dtype=torch.int64),
            features=features,
            precomputed_target_rows=RowIndex(torch.empty(0, dtype=torch.int64), (0, 0)),
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
            views=None if self.views is None else self.views.to(device),
            layout=None if self.layout is None else self.layout.to(device),
            precomputed_target_rows=None
            if self.precomputed_target_rows is None
            else self.precomputed_target_rows.to(device),
        )


IGNORE = -100
