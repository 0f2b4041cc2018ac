"""Keys and values of what was read and written, in slots: what transformers' decoder layers take for their cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from mmblocks.reprs import format_by_shape

GROWTH_SLOTS = 64  # slots; memory is asked for in pieces of this many


class KVCache:
    """For each layer keys and values (sequences, kv_heads, capacity, head_dim), those of a token in its position's slot.

    The first `lengths[i]` slots of sequence i are filled; what lies behind them is free, whatever it holds. Lengths
    grow only once a token has been through all layers, so a run that fails half-way leaves the store as it was.
    Layers with a sliding window keep everything too: what they may see is a matter of masks.
    """

    def __init__(self, sequences: int) -> None:
        self.lengths = [0] * sequences
        self.capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._placement: _Placement | None = None

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of all sequences in all layers; 0 before anything was read."""
        return sum(buffer[:, :, :1].numel() * buffer.element_size() for buffer in (*self._keys, *self._values))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest sequence's length (transformers' word for it)."""
        return max(self.lengths)

    def reserve_slots(self, slots: int) -> None:
        """Have room for sequences of `slots` tokens; a store that grows doubles."""
        if slots > self.capacity:
            wanted = max(slots, 2 * self.capacity)
            self._resize_buffers(-(-wanted // GROWTH_SLOTS) * GROWTH_SLOTS)

    def truncate_to(self, length: int) -> None:
        """Forget what lies behind the first `length` tokens of every sequence."""
        if length < max(self.lengths):
            for buffer in (*self._keys, *self._values):
                buffer[:, :, length:].zero_()  # a number that is not finite would be seen through any mask
            self.lengths = [min(n, length) for n in self.lengths]

    def shrink_to_bytes(self, max_bytes: int) -> None:
        """Give back memory beyond `max_bytes`, and forget what does not fit."""
        slots = max_bytes // max(self.slot_bytes, 1)
        if slots < self.capacity:
            self.truncate_to(slots)
            self._resize_buffers(slots)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Put a layer's new keys and values into their slots; returns those to attend to. Called by the layers."""
        assert self._placement is not None, "layers run inside `reading` or `writing`"
        if layer_idx == len(self._keys):
            self._keys.append(self._make_buffer(keys))
            self._values.append(self._make_buffer(values))
        buffers = self._keys[layer_idx], self._values[layer_idx]
        self._placement.write_rows(buffers[0], keys)
        self._placement.write_rows(buffers[1], values)
        return self._placement.select_visible(buffers[0], keys), self._placement.select_visible(buffers[1], values)

    @contextmanager
    def place_packed_rows(self, lengths: Sequence[int], device: torch.device) -> Iterator[Tensor]:
        """Packed rows are run, `lengths[i]` for sequence i behind what it holds; gives their positions (rows,).

        Layers get keys and values packed: of each sequence what it held and then its new rows.
        """
        begins, ends = self.lengths, [b + n for b, n in zip(self.lengths, lengths, strict=True)]
        self.reserve_slots(max(ends))
        new = _make_row_slots(begins, ends, device)
        with self._use_placement(
            _PackedPlacement(new, _make_row_slots([0] * len(ends), ends, device) if any(begins) else None)
        ):
            yield new.slots
        self.lengths = ends

    @contextmanager
    def place_step_rows(self, positions: Tensor, visible: int) -> Iterator[None]:
        """One row of each sequence is run, at `positions` (sequences,); layers get the first `visible` slots of all.

        Lengths stay as they are: see `advance`.
        """
        with self._use_placement(
            _StepPlacement(torch.arange(len(self.lengths), device=positions.device), positions, visible)
        ):
            yield

    def advance_lengths(self, going: Sequence[bool]) -> None:
        """The row that was just written belongs to the sequences that go on."""
        self.lengths = [n + one for n, one in zip(self.lengths, going, strict=True)]

    @contextmanager
    def _use_placement(self, places: _Placement) -> Iterator[None]:
        self._placement = places
        try:
            yield
        finally:
            self._placement = None

    def _make_buffer(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(len(self.lengths), rows.shape[1], self.capacity, rows.shape[3])

    def _resize_buffers(self, capacity: int) -> None:
        kept = min(capacity, self.capacity)
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                buffers[layer][:, :, :kept] = old[:, :, :kept]
        self.capacity = capacity


class _Placement(Protocol):
    """Where new rows go, and what is attended to once they are there."""

    def write_rows(self, buffer: Tensor, rows: Tensor) -> None: ...

    def select_visible(self, buffer: Tensor, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _RowSlots:
    """Slots of packed rows: of each row the sequence and the slot, both int64 (rows,)."""

    sequences: Tensor
    slots: Tensor
    __repr__ = format_by_shape


def _make_row_slots(begins: Sequence[int], ends: Sequence[int], device: torch.device) -> _RowSlots:
    """Rows from `begins[i]` up to `ends[i]` of every sequence i, end to end."""
    lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
    shifts = torch.tensor([b - s for b, s in zip(begins, [0, *accumulate(lengths)][:-1], strict=True)])
    sequences = torch.repeat_interleave(torch.tensor(lengths))
    return _RowSlots(sequences.to(device), (torch.arange(sum(lengths)) + shifts[sequences]).to(device))


@dataclass(frozen=True, slots=True)
class _PackedPlacement:
    """Rows (1, kv_heads, rows, head_dim) of all sequences end to end; `keys` are None where nothing was held."""

    new: _RowSlots
    keys: _RowSlots | None

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

    def write_rows(self, buffer: Tensor, rows: Tensor) -> None:
        buffer.transpose(1, 2)[self.sequences, self.slots] = rows.squeeze(2)

    def select_visible(self, buffer: Tensor, rows: Tensor) -> Tensor:
        return buffer[:, :, : self.visible]
