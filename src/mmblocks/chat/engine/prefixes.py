"""Spans of a pool of keys and values, and what is known of their rows: prompts that begin alike share what was computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmblocks.chat.prompts import ChatPrompt
from mmblocks.model.generation.pool import KVPool
from mmblocks.reprs import format_by_shape

MAX_IDLE_SPANS = 256
BLOCK_ROWS = 16
WORTH_WAITING_ROWS = 64
"""Fewer rows are computed again sooner than they are waited for."""


def encode_rows(prompt: ChatPrompt) -> Tensor:
    """(tokens,) int64, equal where the rows of prompts are equal: ids of text, and negative numbers for rows of visuals."""
    codes = prompt.encoded.input_ids.clone()
    for key, places in zip(prompt.keys, prompt.row_positions, strict=True):
        first = int(key[:15], 16)  # keys are hexadecimal digests; so much of one tells all visuals of a server apart
        codes[places] = -first - 1 - torch.arange(len(places))
    return codes


def hash_blocks(codes: Tensor) -> list[int]:
    """For every whole block of rows a number of it and all before it."""
    hashes, last, content = [], 0, codes.numpy().tobytes()
    size = BLOCK_ROWS * codes.element_size()
    for begin in range(0, len(content) - size + 1, size):
        last = hash((last, content[begin : begin + size]))
        hashes.append(last)
    return hashes


@dataclass(eq=False, slots=True)
class CachedRows:
    """A span whose first `length` rows are filled. codes: of these rows and those that will follow; see `encode_rows`."""

    span: range
    codes: Tensor
    length: int
    is_idle: bool = False
    blocks: list[int] = field(default_factory=list)
    __repr__ = format_by_shape

    def count_alike(self, codes: Tensor) -> int:
        """How many rows at the beginning of others are or will be filled here."""
        length = min(len(self.codes), len(codes))
        (differing,) = np.nonzero(self.codes.numpy()[:length] != codes.numpy()[:length])
        return int(differing[0]) if len(differing) else length


@dataclass(frozen=True, slots=True)
class SharedRows:
    """What is there of a prompt. alike: so many of its first rows are those of `donor`; filled: so many are computed."""

    donor: CachedRows | None = None
    alike: int = 0
    filled: int = 0
    __repr__ = format_by_shape


class PrefixCache:
    """Reserves spans, and keeps those of answered prompts until their room is wanted, the least recently used first.

    Rows are shared where at least a block of them is alike.
    """

    def __init__(self, pool: KVPool, *, shares: bool) -> None:
        self.pool = pool
        self._shares = shares
        self._cached: dict[CachedRows, None] = {}
        self._by_block: dict[int, list[CachedRows]] = {}

    def find_shared(self, codes: Tensor) -> SharedRows:
        """Whatever has the most rows at the beginning of a prompt, all but the last at most."""
        codes, candidates = codes[:-1], list[CachedRows]()
        for block in hash_blocks(codes) if self._shares else ():
            if block not in self._by_block:
                break
            candidates = self._by_block[block]
        if not candidates:
            return SharedRows()
        donor = max(candidates, key=lambda rows: rows.length)
        alike = donor.count_alike(codes)
        return SharedRows(donor, alike, min(alike, donor.length))

    def is_worth_waiting(self, codes: Tensor) -> bool:
        """Whether most of a prompt is being computed for another one."""
        shared = self.find_shared(codes)
        return shared.alike >= shared.filled + WORTH_WAITING_ROWS and 2 * shared.alike >= len(codes)

    def begin(self, codes: Tensor, slots: int) -> CachedRows | None:
        """A span of so many slots with as many rows of `codes` filled as are known.

        None where there is no room while others use theirs.
        """
        shared = self.find_shared(codes)
        rows = self._take_over(shared, slots)
        if rows is None:
            span = self.reserve_span(slots, spared=shared.donor)
            if span is None:
                return None
            if shared.donor not in self._cached:  # its room was wanted
                shared = SharedRows()
            if shared.donor is not None:
                self.pool.copy_rows(shared.donor.span, span, shared.filled)
            rows = CachedRows(span, codes, 0)
        rows.codes, rows.length, rows.is_idle = codes, shared.filled, False
        self._append(rows)
        return rows

    def has_room(self, slots: int) -> bool:
        """Whether so many slots are free or idle, in one piece or not."""
        return self.pool.free_slots + sum(len(rows.span) for rows in self._cached if rows.is_idle) >= slots

    def reserve_span(self, slots: int, *, spared: CachedRows | None = None) -> range | None:
        """A span without rows. Idle ones are dropped where it needs their room, `spared` as the last."""
        idle = [rows for rows in self._cached if rows.is_idle]
        if not self.has_room(slots):
            return None
        order = [*(rows for rows in idle if rows is not spared), *(rows for rows in idle if rows is spared)]
        while (span := self.pool.reserve_span(slots)) is None and order:
            self.drop(order.pop(0))
        return span

    def keep(self, rows: CachedRows, codes: Tensor) -> None:
        """An answer has ended: its filled rows, which are these, may be shared until their room is wanted."""
        self._forget(rows)
        rows.codes, rows.length, rows.is_idle = codes, len(codes), True
        self.pool.release_span(rows.span[rows.length :])
        rows.span = rows.span[: rows.length]
        if not self._shares:
            self.pool.release_span(rows.span)
            return
        self._append(rows)
        idle = [one for one in self._cached if one.is_idle]
        if len(idle) > MAX_IDLE_SPANS:
            self.drop(idle[0])

    def drop(self, rows: CachedRows) -> None:
        """Free a span."""
        self._forget(rows)
        self.pool.release_span(rows.span)

    def clear(self) -> None:
        """Share nothing of what has been computed up to now."""
        for rows in [one for one in self._cached if one.is_idle]:
            self.drop(rows)
        self._by_block.clear()
        for rows in self._cached:
            rows.blocks = []

    def _take_over(self, shared: SharedRows, slots: int) -> CachedRows | None:
        """An idle span as it lies, made longer where there is room behind it, if most of its rows are shared."""
        donor = shared.donor
        if donor is None or not donor.is_idle or 2 * shared.filled < donor.length:
            return None
        if len(donor.span) < slots:
            longer = self.pool.extend_span(donor.span, slots)
            if longer is None:
                return None
            donor.span = longer
        self.pool.release_span(donor.span[slots:])
        donor.span = donor.span[:slots]
        self._forget(donor)
        return donor

    def _append(self, rows: CachedRows) -> None:
        self._cached[rows] = None
        rows.blocks = hash_blocks(rows.codes) if self._shares else []
        for block in rows.blocks:
            self._by_block.setdefault(block, []).append(rows)

    def _forget(self, rows: CachedRows) -> None:
        del self._cached[rows]
        for block in rows.blocks:
            self._by_block[block].remove(rows)
            if not self._by_block[block]:
                del self._by_block[block]
