"""Keys and values of many sequences in one pool of slots, with the interface that transformers' layers expect of a cache."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from mmblocks.compat import find_autocast_dtype


class KVPool:
    """For each layer keys and values (slots, kv_heads, head_dim). A sequence has a span of slots that follow each other.

    Memory is taken when the first rows are written. Layers with a sliding window keep everything too.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = [range(slots)] if slots else []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._places: dict[torch.device, Tensor] = {}

    @property
    def free_slots(self) -> int:
        return sum(map(len, self._free))

    def reserve_span(self, slots: int) -> range | None:
        """The first free span of so many slots; None where no free part is so long."""
        for i, part in enumerate(self._free):
            if len(part) >= slots:
                self._free[i : i + 1] = [part[slots:]] if len(part) > slots else []
                return part[:slots]
        return None

    def extend_span(self, span: range, slots: int) -> range | None:
        """The span with slots behind it up to so many; None where these are not free."""
        wanted = range(span.stop, span.start + slots)
        for i, part in enumerate(self._free):
            if part.start == span.stop and part.stop >= wanted.stop:
                self._free[i : i + 1] = [part[len(wanted) :]] if len(part) > len(wanted) else []
                return range(span.start, wanted.stop)
        return None

    def release_span(self, span: range) -> None:
        """Free a span that was reserved, or a part of it."""
        if not span:
            return
        i = bisect(self._free, span.start, key=lambda part: part.start)
        before, behind = self._free[:i], self._free[i:]
        assert not before or before[-1].stop <= span.start, "a span is released once"
        assert not behind or span.stop <= behind[0].start, "a span is released once"
        if before and before[-1].stop == span.start:
            span = range(before.pop().start, span.stop)
        if behind and behind[0].start == span.stop:
            span = range(span.start, behind.pop(0).stop)
        self._free = [*before, span, *behind]

    def copy_rows(self, source: range, target: range, rows: int) -> None:
        """Copy the first rows of one span to the beginning of another."""
        for buffer in (*self._keys, *self._values):
            buffer[target.start : target.start + rows] = buffer[source.start : source.start + rows]

    @contextmanager
    def place_rows(self, spans: Sequence[range], device: torch.device) -> Iterator[None]:
        """While packed rows are run, which are written to the slots of `spans`, end to end."""
        with self.place_slots(list_numbers(spans).to(device, non_blocking=device.type != "cpu")):
            yield

    @contextmanager
    def place_slots(self, slots: Tensor) -> Iterator[None]:
        """While rows are run, each of which is written to its slot: (rows,) int64."""
        self._places = {slots.device: slots}
        try:
            yield
        finally:
            self._places = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values; returns those of all slots, (1, kv_heads, slots, head_dim). Called by layers."""
        if layer_idx == len(self._keys):
            for buffers, rows in ((self._keys, keys), (self._values, values)):
                buffers.append(_make_buffer(rows.to(_find_dtype(rows)), self.slots))
        places = self._find_places(keys.device)
        found = []
        for buffer, rows in ((self._keys[layer_idx], keys), (self._values[layer_idx], values)):
            buffer.index_copy_(0, places, rows.squeeze(0).transpose(0, 1).to(buffer.dtype))
            found.append(buffer.transpose(0, 1).unsqueeze(0))
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Under transformers' name, which asks for it where no mask is given; positions are given here."""
        return 0

    def _find_places(self, device: torch.device) -> Tensor:
        """The slots of the rows that are run, copied once to each device that has layers."""
        assert self._places, "layers run inside `place_rows`"
        if device not in self._places:
            self._places[device] = next(iter(self._places.values())).to(device)
        return self._places[device]


def _find_dtype(rows: Tensor) -> torch.dtype:
    """That of attention: under autocast keys may come in float32 and values in a half."""
    found = find_autocast_dtype(rows.device.type)
    return rows.dtype if found is None or rows.dtype == torch.float64 else found


def list_numbers(spans: Iterable[range]) -> Tensor:
    """The numbers of some spans, end to end, int64."""
    return torch.tensor([*chain.from_iterable(spans)], dtype=torch.int64)


def _make_buffer(rows: Tensor, slots: int) -> Tensor:
    """(slots, kv_heads, head_dim) of zeros: a number that is not finite would pass any mask.

    On the CPU memory is taken as it is written, which torch's own zeros would take at once.
    """
    shape = slots, rows.shape[1], rows.shape[3]
    if rows.device.type != "cpu" or is_fake(rows):
        return rows.new_zeros(shape)
    return torch.from_numpy(np.zeros(math.prod(shape) * rows.element_size(), np.uint8)).view(rows.dtype).view(shape)
