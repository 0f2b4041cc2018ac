"""Tensors that the data workers send to the device: sequences packed end to end, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.reprs import Dataclass, format_by_shape
from mmblocks.shapes import RoutedPlan, Size

IGNORE = -100
"""The target of a row from which nothing is learned."""

T = TypeVar("T", bound=Dataclass)


def move_tensors(self: T, device: torch.device | str, *, non_blocking: bool = False) -> T:
    """The same object with its tensors on a device."""
    moved: dict[str, object] = {}
    for field in fields(self):
        value = getattr(self, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device, non_blocking=non_blocking)
        elif hasattr(value, "to"):
            moved[field.name] = value.to(device)
    return replace(self, **moved)


def move_tensors_async(self: T, device: torch.device | str) -> T:
    """As `move_tensors`, without waiting for the copies."""
    return move_tensors(self, device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Packing:
    """Where sequences begin and end in a packed row: `cu_seqlens` int32 (sequences + 1,), first 0, last the total."""

    cu_seqlens: Tensor
    max_seqlen: int
    __repr__ = format_by_shape
    to = move_tensors

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Packing:
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(ends, max(lengths, default=0))

    @property
    def lengths(self) -> list[int]:
        return self.cu_seqlens.diff().tolist()


@dataclass(frozen=True, slots=True)
class Instructions:
    """The question about each image, for projectors that read it: ids of their own tokenizer, not of the backbone's.

    ids: (unique views, length) int64, shorter questions padded at the end. mask: (unique views, length) bool, True for real tokens.
    """

    ids: Tensor
    mask: Tensor
    __repr__ = format_by_shape
    to = move_tensors

    @classmethod
    def from_ids(cls, rows: Sequence[Tensor]) -> Instructions:
        """One row of ids per image, any of them empty."""
        length = max(map(len, rows), default=0)
        ids = torch.stack([F.pad(row, (0, length - len(row))) for row in rows]) if rows else torch.empty(0, 0)
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return cls(ids.to(torch.int64), torch.arange(length) < sizes[:, None])

    @classmethod
    def make_empty(cls, views: int) -> Instructions:
        """No question about any view."""
        return cls(torch.empty(views, 0, dtype=torch.int64), torch.empty(views, 0, dtype=torch.bool))

    def split_by_counts(self, counts: Sequence[int]) -> list[Instructions]:
        """One object per group of `counts` views."""
        pairs = zip(self.ids.split(list(counts)), self.mask.split(list(counts)), strict=True)
        return [Instructions(ids, mask) for ids, mask in pairs]

    def select_views(self, views: Tensor) -> Instructions:
        """One row for each of `views`, which are indices of unique views."""
        return Instructions(self.ids[views], self.mask[views])


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Some rows of a packed batch, ascending: `index` int64 (n,), and how many belong to each sequence.

    index_host, cu_seqlens_host: copies of the index and of the packing's cumulative lengths on the host, where they are
    known: decisions from them need not wait for the device.
    """

    index: Tensor
    counts: tuple[int, ...]
    index_host: tuple[int, ...] | None = None
    cu_seqlens_host: tuple[int, ...] | None = None
    __repr__ = format_by_shape
    to = move_tensors_async

    @classmethod
    def from_targets(cls, targets: Tensor, packing: Packing) -> RowIndex:
        """The rows that have a target."""
        index = (targets != IGNORE).nonzero().squeeze(1)
        counts = torch.searchsorted(index, packing.cu_seqlens.to(index)).diff()
        return cls(index, tuple(counts.tolist()), tuple(index.tolist()), tuple(packing.cu_seqlens.tolist()))

    def __len__(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class GatherTable:
    """Rows made of other rows: row i is the sum over j of weights[i, j] * x[rows[i, j]]. Weight 0 reads nothing.

    rows: int64 (n, k); weights: float32 (n, k); size: number of rows of x.
    transpose: the table (size, k2) that gathers the gradient of x from that of the result, where it was made beforehand.
    """

    rows: Tensor
    weights: Tensor
    size: int
    transpose: GatherTable | None = None
    __repr__ = format_by_shape
    to = move_tensors_async


@dataclass(frozen=True, slots=True)
class GatherLayout:
    """How the visual tokens of a batch are made of the encoder's cells, in integers, for all visuals at once.

    cell_table: gathers the input of the projector's body from the encoder's cells (unique views * rows * columns); None where
        it reads all of them, as maps. token_table: gathers visual tokens from the cells of the body's output.
    positions: int64, the row of each of these tokens in the sequence. learned_token_ids: int64, for each learned token its
        number among those of the model. learned_token_positions: their rows.
    """

    cell_table: GatherTable | None
    token_table: GatherTable
    positions: Tensor
    learned_token_ids: Tensor
    learned_token_positions: Tensor
    __repr__ = format_by_shape
    to = move_tensors_async


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples, ready for the model.

    input_ids, position_ids, targets: (tokens,) int64. `targets[i]` is the id that row i must predict, or IGNORE.
    pixels: (unique views, 3, height, width) uint8, the views of all visuals in order; equal views of a visual occur once.
    plans: one per visual, in the order of their pixels and of their rows.
    visual_positions: (visual tokens,) int64, the rows of `input_ids` that visual tokens replace, in order.
    instructions: the question about each image, where the model's projector reads it.
    features: (unique views, rows, columns, dim), stored outputs of a frozen encoder; `pixels` are not read then.
    views: (views of all plans,) int64, the image of each view; None where every view is an image of its own.
    layout: how visual tokens are made of features, in integers; None where a tokenizer does not give it.
    precomputed_target_rows: the rows that have a target, where a data worker found them; read `target_rows` instead.
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
    to = move_tensors

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def target_rows(self) -> RowIndex:
        """The rows that have a target."""
        rows = self.precomputed_target_rows
        return RowIndex.from_targets(self.targets, self.packing) if rows is None else rows

    @property
    def num_labelled(self) -> int:
        return len(self.target_rows)

    @property
    def num_views(self) -> int:
        """Number of unique views, which are encoded: equal ones of a visual count once."""
        return len(self.pixels if self.features is None else self.features)

    def with_all_views(self) -> Batch:
        """The same batch with pixels for every view of every plan, so that views can be exchanged; it has no layout."""
        if self.views is None:
            return self
        instructions = self.instructions
        return replace(
            self,
            pixels=self.pixels[self.views] if len(self.pixels) else self.pixels,
            instructions=None if instructions is None else instructions.select_views(self.views),
            features=None if self.features is None else self.features[self.views],
            views=None,
            layout=None,
        )

    def with_blank_view(self, view_px: Size) -> Batch:
        """For a batch without views, the same batch with a black one that is encoded and not used in the sequence."""
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
        zeros = torch.zeros(2, dtype=torch.int64)
        return cls(
            input_ids=zeros,
            position_ids=zeros,
            targets=torch.full((2,), IGNORE),
            packing=Packing.from_lengths([1, 1]),
            pixels=torch.empty(0, 3, *view_px, dtype=torch.uint8),
            plans=(),
            visual_positions=torch.empty(0, dtype=torch.int64),
            features=features,
            precomputed_target_rows=RowIndex(torch.empty(0, dtype=torch.int64), (0, 0)),
        )
