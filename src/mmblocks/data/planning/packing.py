"""Samples of many lengths into rows of one size: streaming best fit, with hard caps."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmblocks.errors import ConfigError

OPEN_PACKS = 16
"""Packs that are filled side by side. More waste less and stray further from the order of the samples."""


def pack_best_fit(
    tokens: Sequence[int] | np.ndarray,
    views: Sequence[int] | np.ndarray | None = None,
    *,
    max_tokens: int | None = None,
    max_views: int | None = None,
    open_packs: int = OPEN_PACKS,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Numbers of samples by pack; no pack holds more than `max_tokens` tokens or `max_views` views.

    Each sample goes where it leaves the least room; a new pack is opened when it fits nowhere, and the fullest is closed
    when more than `open_packs` are open. Packs stand in the order of their first samples, samples of a pack in their own.
    Raises `ConfigError` that names a sample larger than a cap, by its entry in `names` where they are given.
    """
    sizes = np.asarray(tokens, dtype=np.int64)
    shown = np.zeros(len(sizes), dtype=np.int64) if views is None else np.asarray(views, dtype=np.int64)
    limits = _PackLimits(
        int(sizes.sum()) if max_tokens is None else max_tokens, int(shown.sum()) if max_views is None else max_views
    )
    _check_sizes(sizes, limits.tokens, "tokens", "pack_tokens", names)
    _check_sizes(shown, limits.views, "views", "pack_views", names)
    packs: list[list[int]] = []
    opened: list[_OpenPack] = []
    for number, (need, seen) in enumerate(zip(sizes.tolist(), shown.tolist(), strict=True)):
        fitting = range(bisect_left(opened, need, key=_get_room), len(opened))  # sorted by room, least first
        at = next((index for index in fitting if opened[index].view_room >= seen), None)
        if at is None:
            if len(opened) == open_packs:
                opened.remove(min(opened, key=lambda pack: pack.compute_share_left(limits)))
            packs.append([])
            chosen = _OpenPack(limits.tokens, limits.views, packs[-1])
        else:
            chosen = opened.pop(at)
        chosen.add_sample(number, need, seen)
        if chosen.room > 0:
            insort(opened, chosen, key=_get_room)
    return packs


@dataclass(frozen=True, slots=True)
class _PackLimits:
    tokens: int
    views: int


@dataclass(slots=True, eq=False)
class _OpenPack:
    """A pack that is being filled: what still fits, and what it holds."""

    room: int
    view_room: int
    samples: list[int] = field(default_factory=list)

    def add_sample(self, number: int, tokens: int, views: int) -> None:
        self.room -= tokens
        self.view_room -= views
        self.samples.append(number)

    def compute_share_left(self, limits: _PackLimits) -> float:
        """The smaller of the shares of tokens and views that still fit."""
        return min(self.room / max(limits.tokens, 1), self.view_room / limits.views if limits.views else 1.0)


def _get_room(pack: _OpenPack) -> int:
    return pack.room


def _check_sizes(sizes: np.ndarray, limit: int, what: str, setting: str, names: Sequence[str] | None) -> None:
    too_large = np.flatnonzero(sizes > limit)
    if len(too_large):
        first = int(too_large[0])
        name = f"sample {first}" if names is None else names[first]
        raise ConfigError(
            f"{name} has {int(sizes[first])} {what} and a pack takes {limit} ({len(too_large)} of {len(sizes)} samples are "
            f"larger); write {setting}={int(sizes.max())} or more, or make the samples smaller."
        )
