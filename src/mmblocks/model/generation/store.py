"""Key-value cache in slots, with the interface that transformers' decoder layers expect of a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from mmblocks.batch import move_tensors
from mmblocks.reprs import format_by_shape

GROWTH_SLOTS = 64  # memory is allocated in multiples of this many slots


class KVCache:
    """For each layer keys and values (sequences, kv_heads, capacity, head_dim); a token's slot is its position.

    In memory the heads of a slot adjoin, so that slots are rows of packed keys (see `mmblocks.ops.attention.slots`).
    The first `lengths[i]` slots of sequence i are filled; those behind are free, whatever they hold. Lengths grow only
    once a token has been through all layers, so a run that fails half-way leaves the cache valid. Layers with a sliding
    window keep everything too; masks limit what they see.
    """

    def __init__(self, sequences: int) -> None:
        self.lengths = [0] * sequences
        self.capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._placements: dict[torch.device, _Placement] = {}

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of all sequences in all layers; 0 before the first prefill."""
        return sum(buffer[:, :, :1].numel() * buffer.element_size() for buffer in (*self._keys, *self._values))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest sequence's length, under transformers' name."""
        return max(self.lengths)

    def reserve_slots(self, slots: int, *, ahead: int = 0) -> None:
        """Make room for sequences of `slots` tokens, and `ahead` more where it has to grow; then it at least doubles."""
        if slots > self.capacity:
            wanted = max(slots + ahead, 2 * self.capacity)
            self._resize_buffers(-(-wanted // GROWTH_SLOTS) * GROWTH_SLOTS)

    def truncate_to(self, length: int) -> None:
        """Drop everything behind the first `length` tokens of every sequence."""
        if length < max(self.lengths):
            for buffer in (*self._keys, *self._values):
                buffer[:, :, length:].zero_()  # a number that is not finite would pass any mask
            self.lengths = [min(n, length) for n in self.lengths]

    def copy_first_sequences(self, sequences: int) -> None:
        """Fill all other sequences with copies of the first ones, in turn. Their number is a multiple of `sequences`."""
        copies, longest = len(self.lengths) // sequences, max(self.lengths)
        if copies > 1:
            for buffer in (*self._keys, *self._values):
                rows = buffer.unflatten(0, (copies, sequences))[:, :, :, :longest]
                rows[1:] = rows[:1]
            self.lengths = self.lengths[:sequences] * copies

    def shrink_to_bytes(self, max_bytes: int) -> None:
        """Free memory beyond `max_bytes`, and drop the tokens that do not fit."""
        slots = max_bytes // max(self.slot_bytes, 1)
        if slots < self.capacity:
            self.truncate_to(slots)
            self._resize_buffers(slots)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Put a layer's new keys and values into their slots; returns those to attend to. Called by the layers."""
        placement = self._find_placement(keys.device)
        if layer_idx == len(self._keys):
            self._keys.append(self._make_buffer(keys))
            self._values.append(self._make_buffer(values))
        buffers = self._keys[layer_idx], self._values[layer_idx]
        placement.write_rows(buffers[0], keys)
        placement.write_rows(buffers[1], values)
        return placement.select_visible(buffers[0], keys), placement.select_visible(buffers[1], values)

    @contextmanager
    def place_packed_rows(self, lengths: Sequence[int], device: torch.device) -> Iterator[Tensor]:
        """While packed rows are run, `lengths[i]` for sequence i behind what it holds; yields their positions (rows,).

        Layers get keys and values packed: each sequence's earlier rows, then its new ones. Where there are fewer `lengths`
        than sequences, the last sequences get no rows.
        """
        lengths = [*lengths, *[0] * (len(self.lengths) - len(lengths))]
        begins, ends = self.lengths, [b + n for b, n in zip(self.lengths, lengths, strict=True)]
        self.reserve_slots(max(ends))
        new = _make_row_slots(begins, ends, device)
        keys = _make_row_slots([0] * len(ends), ends, device) if any(begins) else None
        with self._use_placement(_PackedPlacement(new, keys), device):
            yield new.slots
        self.lengths = ends

    @contextmanager
    def place_step_rows(self, positions: Tensor, visible: int) -> Iterator[None]:
        """While one row of each sequence is run, at `positions` (sequences,); layers get the first `visible` slots of all.

        Lengths do not change: see `advance_lengths`.
        """
        sequences = torch.arange(len(self.lengths), device=positions.device)
        with self._use_placement(_StepPlacement(sequences, positions, visible), positions.device):
            yield

    def advance_lengths(self) -> None:
        """Count the row of each sequence that was just written."""
        self.lengths = [n + 1 for n in self.lengths]

    def keep_lengths(self, lengths: Sequence[int]) -> None:
        """Drop the rows of sequence i behind its first `lengths[i]`."""
        self.lengths = [min(pair) for pair in zip(self.lengths, lengths, strict=True)]

    @contextmanager
    def _use_placement(self, placement: _Placement, device: torch.device) -> Iterator[None]:
        self._placements = {device: placement}
        try:
            yield
        finally:
            self._placements = {}

    def _find_placement(self, device: torch.device) -> _Placement:
        """The placement for the layers on a device, copied there once."""
        assert self._placements, "layers run inside `place_packed_rows` or `place_step_rows`"
        if device not in self._placements:
            self._placements[device] = next(iter(self._placements.values())).to(device)
        return self._placements[device]

    def _make_buffer(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(len(self.lengths), self.capacity, rows.shape[1], rows.shape[3]).transpose(1, 2)

    def _resize_buffers(self, capacity: int) -> None:
        kept = min(capacity, self.capacity)
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.new_empty(len(old), capacity, old.shape[1], old.shape[3]).transpose(1, 2)
                buffers[layer][:, :, :kept] = old[:, :, :kept]
                buffers[layer][:, :, kept:].zero_()  # see `truncate_to`
        self.capacity = capacity


class _Placement(Protocol):
    """Where new rows are written, and which rows layers attend to afterwards."""

    def to(self, device: torch.device) -> _Placement: ...

    def write_rows(self, buffer: Tensor, rows: Tensor) -> None: ...

    def select_visible(self, buffer: Tensor, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _RowSlots:
    """Slots of packed rows: the sequence and the slot of each row, both int64 (rows,)."""

    sequences: Tensor
    slots: Tensor
    __repr__ = format_by_shape
    to = move_tensors


def _make_row_slots(begins: Sequence[int], ends: Sequence[int], device: torch.device) -> _RowSlots:
    """Rows from `begins[i]` up to `ends[i]` of every sequence i, end to end."""
    lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
    shifts = torch.tensor([b - s for b, s in zip(begins, [0, *accumulate(lengths)][:-1], strict=True)])
    sequences = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths), output_size=sum(lengths))
    return _RowSlots(sequences.to(device), (torch.arange(sum(lengths)) + shifts[sequences]).to(device))


@dataclass(frozen=True, slots=True)
class _PackedPlacement:
    """Rows (1, kv_heads, rows, head_dim) of all sequences end to end; `keys` is None where the cache was empty."""

    new: _RowSlots
    keys: _RowSlots | None
    to = move_tensors

    def write_rows(self, buffer: Tensor, rows: Tensor) -> None:
        buffer.transpose(1, 2)[self.new.sequences, self.new.slots] = rows.squeeze(0).transpose(0, 1)

    def select_visible(self, buffer: Tensor, rows: Tensor) -> Tensor:
        if self.keys is None:
            return rows
        if len(buffer) == 1:  # a view: the keys of a long conversation are not copied for a short question
            return buffer[:, :, : len(self.keys.slots)]
        return buffer.transpose(1, 2)[self.keys.sequences, self.keys.slots].transpose(0, 1).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class _StepPlacement:
    """One row of each sequence: (sequences, kv_heads, 1, head_dim)."""

    sequences: Tensor
    slots: Tensor
    visible: int
    __repr__ = format_by_shape
    to = move_tensors

    def write_rows(self, buffer: Tensor, rows: Tensor) -> None:
        buffer.transpose(1, 2)[self.sequences, self.slots] = rows.squeeze(2)

    def select_visible(self, buffer: Tensor, rows: Tensor) -> Tensor:
        return buffer[:, :, : self.visible]
