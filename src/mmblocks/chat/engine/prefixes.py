"""Spans of a pool of keys and values, and what is known of their rows: prompts that begin alike share what was computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmblocks.chat.prompts import ChatPrompt
from mmblocks.model.generation.pool import KVPool
from mmblocks.reprs import format_by_shape

MAX_IDLE_SPANS = 256


def encode_rows(prompt: ChatPrompt) -> Tensor:
    """(tokens,) int64, equal where the rows of prompts are equal: ids of text, and negative numbers for rows of visuals."""
    codes = prompt.encoded.input_ids.clone()
    for key, places in zip(prompt.keys, prompt.row_positions, strict=True):
        first = int(key[:15], 16)  # keys are hexadecimal digests; so much of one tells all visuals of a server apart
        codes[places] = -first - 1 - torch.arange(len(places))
    return codes


@dataclass(eq=False, slots=True)
class CachedRows:
    """A span whose first `length` rows are filled. codes: of these rows and those that will follow; see `encode_rows`."""

    span: range
    codes: Tensor
    length: int
    is_idle: bool = False
    __repr__ = format_by_shape

    def count_shared(self, codes: Tensor) -> int:
        """How many rows at the beginning of others are filled here."""
        own, length = self.codes.numpy(), min(self.length, len(codes))
        (differing,) = np.nonzero(own[:length] != codes.numpy()[:length])
        return int(differing[0]) if len(differing) else length


class PrefixCache:
    """Reserves spans, and keeps those of answered prompts until their room is wanted, the least recently used first."""

    def __init__(self, pool: KVPool, *, shares: bool) -> None:
        self.pool = pool
        self._shares = shares
        self._cached: list[CachedRows] = []

    def begin(self, codes: Tensor, slots: int) -> CachedRows | None:
        """A span of so many slots with as many rows of `codes` filled as are known, all but the last at most.

        None where there is no room while others use theirs.
        """
        donor, shared = self._find_donor(codes[:-1])
        if donor is not None and (taken := self._take_over(donor, shared, slots)) is not None:
            taken.codes, taken.length, taken.is_idle = codes, shared, False
            self._cached.append(taken)
            return taken
        span = self.reserve_span(slots, spared=donor)
        if span is None:
            return None
        if donor is not None and donor in self._cached:
            self.pool.copy_rows(donor.span, span, shared)
        else:
            shared = 0
        rows = CachedRows(span, codes, shared)
        self._cached.append(rows)
        return rows

    def reserve_span(self, slots: int, *, spared: CachedRows | None = None) -> range | None:
        """A span without rows. Idle ones are dropped where it needs their room, `spared` as the last."""
        idle = [rows for rows in self._cached if rows.is_idle]
        if self.pool.free_slots + sum(len(rows.span) for rows in idle) < slots:
            return None
        order = [*(rows for rows in idle if rows is not spared), *(rows for rows in idle if rows is spared)]
        while (span := self.pool.reserve_span(slots)) is None and order:
            self.drop(order.pop(0))
        return span

    def keep(self, rows: CachedRows, codes: Tensor) -> None:
        """An answer has ended: its filled rows, which are these, may be shared until their room is wanted."""
        rows.codes, rows.length, rows.is_idle = codes, len(codes), True
        self.pool.release_span(rows.span[rows.length :])
        rows.span = rows.span[: rows.length]
        self._cached.remove(rows)
        if self._shares:
            self._cached.append(rows)
        else:
            self.pool.release_span(rows.span)
        idle = [one for one in self._cached if one.is_idle]
        if len(idle) > MAX_IDLE_SPANS:
            self.drop(idle[0])

    def drop(self, rows: CachedRows) -> None:
        """Free a span."""
        self._cached.remove(rows)
        self.pool.release_span(rows.span)

    def clear(self) -> None:
        """Share nothing of what has been computed up to now."""
        for rows in [one for one in self._cached if one.is_idle]:
            self.drop(rows)
        for rows in self._cached:
            rows.codes = rows.codes[:0]
            rows.length = 0

    def _find_donor(self, codes: Tensor) -> tuple[CachedRows | None, int]:
        """Whatever has the most rows at the beginning of these, and how many."""
        if not self._shares:
            return None, 0
        counts = [(rows.count_shared(codes), rows) for rows in self._cached]
        shared, donor = max(counts, key=lambda pair: pair[0], default=(0, None))
        return (donor, shared) if shared else (None, 0)

    def _take_over(self, donor: CachedRows, shared: int, slots: int) -> CachedRows | None:
        """An idle span as it lies, made longer where there is room behind it, if most of its rows are shared."""
        if not donor.is_idle or 2 * shared < donor.length:
            return None
        if len(donor.span) < slots:
            longer = self.pool.extend_span(donor.span, slots)
            if longer is None:
                return None
            donor.span = longer
        self.pool.release_span(donor.span[slots:])
        donor.span = donor.span[:slots]
        self._cached.remove(donor)
        return donor
