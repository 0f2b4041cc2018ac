"""Tensors that the data workers send to the device: sequences packed end to end, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.reprs import Dataclass, format_by_shape
from mmblocks.shapes import RoutedPlan, Size

IGNORE = -100
"""The target of a row from which nothing is learned."""

ALIGNMENT_BYTES = 128
"""Where tensors begin in a packed batch; attention kernels read 16 bytes at once, and a GPU's memory 128."""

T = TypeVar("T", bound=Dataclass)


def list_tensors(self: Dataclass) -> Iterator[Tensor]:
    """The tensors of an object and of the objects in it, in the order of their fields."""
    for part in fields(self):
        value = getattr(self, part.name)
        if isinstance(value, Tensor):
            yield value
        elif hasattr(value, "to"):
            yield from list_tensors(value)


def change_tensors(self: T, change: Callable[[Tensor], Tensor]) -> T:
    """The same object with each of its tensors changed, in the order of `list_tensors`."""
    changed: dict[str, object] = {}
    for part in fields(self):
        value = getattr(self, part.name)
        if isinstance(value, Tensor):
            changed[part.name] = change(value)
        elif hasattr(value, "to"):
            changed[part.name] = change_tensors(value, change)
    return replace(self, **changed)


def move_tensors(self: T, device: torch.device | str) -> T:
    """The same object with its tensors on a device. The host does not wait for copies to a GPU."""
    non_blocking = torch.device(device).type != "cpu"  # the host may read what is on the CPU at once
    return change_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, slots=True)
class Packing:
    """Where sequences begin and end in a packed row: `cu_seqlens` int32 (sequences + 1,), first 0, last the total.

    lengths_host: the lengths on the host, where they are known; read `lengths` instead.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    lengths_host: tuple[int, ...] | None = field(default=None, repr=False)
    __repr__ = format_by_shape
    to = move_tensors

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Packing:
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(ends, max(lengths, default=0), tuple(lengths))

    @property
    def lengths(self) -> list[int]:
        return self.cu_seqlens.diff().tolist() if self.lengths_host is None else list(self.lengths_host)


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
    def make_empty(cls, views: int, device: torch.device | None = None) -> Instructions:
        """No question about any view."""
        ids, mask = (torch.empty(views, 0, dtype=dtype, device=device) for dtype in (torch.int64, torch.bool))
        return cls(ids, mask)

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
    to = move_tensors

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
    to = move_tensors


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
    to = move_tensors


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
    buffer: (bytes,) uint8, the memory of all tensors of the batch, where `pack` has laid them together.
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
    buffer: Tensor | None = field(default=None, repr=False)
    __repr__ = format_by_shape

    def pack(self) -> Batch:
        """The same batch with its tensors in one buffer, so that it is pinned and moved in one copy.

        Each tensor begins at a multiple of `ALIGNMENT_BYTES`.
        """
        tensors = list(list_tensors(replace(self, buffer=None)))
        ends = list(accumulate(-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for tensor in tensors))
        buffer = torch.empty(ends[-1], dtype=torch.uint8)
        views = [_view_bytes(buffer, begin, tensor) for begin, tensor in zip([0, *ends], tensors, strict=False)]
        for view, tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)
        remaining = iter(views)
        packed = change_tensors(replace(self, buffer=None), lambda _: next(remaining))
        return replace(packed, buffer=buffer)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device, by one copy where it is packed. The host does not wait for copies to a GPU."""
        non_blocking = torch.device(device).type != "cpu"
        return self._copy_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in memory of the host from which a GPU copies while both work on."""
        return self._copy_tensors(Tensor.pin_memory)

    def _copy_tensors(self, copy: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with its tensors copied; those in the buffer together."""
        if self.buffer is None:
            return change_tensors(self, copy)
        memory, buffer = self.buffer.untyped_storage().data_ptr(), copy(self.buffer)

        def copy_tensor(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() != memory or not tensor.is_contiguous():
                return copy(tensor)  # it was put in the place of one that is in the buffer
            return _view_bytes(buffer, int(tensor.storage_offset()) * tensor.itemsize, tensor)

        return replace(change_tensors(replace(self, buffer=None), copy_tensor), buffer=buffer)

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
        return replace(self, pixels=blank, instructions=Instructions.make_empty(1, blank.device), features=features)

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
            precomputed_target_rows=RowIndex(torch.empty(0, dtype=torch.int64), (0, 0), (), (0, 1, 2)),
        )


def _view_bytes(buffer: Tensor, begin: int, like: Tensor) -> Tensor:
    """The tensor of that type and shape at byte `begin` of a buffer."""
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
