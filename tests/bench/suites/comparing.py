"""From times to rows: ours against the peer as shipped, and against the fastest of its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.suites.rows import PeerSetting, Row
from tests.bench.suites.run import Run
from tests.bench.suites.timing import Timing, Way, time_in_turns

log = logging.getLogger(__name__)
Doing = Way | Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """One way in which the peer does the same: what it stands for, and with which settings."""

    setting: PeerSetting
    settings: str
    way: Doing


def compare_times(
    run: Run,
    suite: str,
    scenario: str,
    quantity: str,
    ours: Doing,
    peers: Mapping[str, Peer] | list[Peer],
    *,
    error: float | None,
    floor_s: float | None = None,
    unit: str = "s",
    amount: float | None = None,
) -> Iterator[Row]:
    """Time all in turns. One row against each setting of the peer; of several at its best the fastest counts.

    floor_s: the least time physics allows. amount: what is done in one run, where the unit is so much a second.
    """
    entries = [peer for peer in (peers.values() if isinstance(peers, Mapping) else peers) if is_working(peer)]
    timings = time_in_turns({"": ours, **{f"{i}": peer.way for i, peer in enumerate(entries)}}, run)
    mine = timings[""]
    for peer, timing in keep_fastest(zip(entries, (timings[f"{i}"] for i in range(len(entries))), strict=True)):
        yield run.row(
            suite,
            scenario,
            quantity,
            unit,
            _to_unit(mine, amount),
            _to_unit(timing, amount),
            setting=peer.setting,
            settings=peer.settings,
            less_is_better=amount is None,
            error=error,
            spread=mine.spread,
            floor_share=None if floor_s is None else floor_s / mine.median,
        )


def keep_fastest(timed: object) -> Iterator[tuple[Peer, Timing]]:
    """Everything but the slower ones of the peer at its best."""
    pairs: list[tuple[Peer, Timing]] = list(timed)
    best = [pair for pair in pairs if pair[0].setting == "best"]
    yield from (pair for pair in pairs if pair[0].setting != "best")
    if best:
        yield min(best, key=lambda pair: pair[1].median)


def _to_unit(timing: Timing, amount: float | None) -> float:
    return timing.median if amount is None else amount / timing.median


def is_working(peer: Peer) -> bool:
    """Whether a setting of the peer works here; one that does not (too little memory, a compiler) is told, and left out."""
    way = peer.way if isinstance(peer.way, Way) else Way(peer.way)
    try:
        way.run(way.ready(0))
    except Exception as fault:  # compilers raise errors of several packages; the peer's other settings remain
        log.warning("the peer %s (%s) does not run here: %s", peer.setting, peer.settings or "no settings", fault)
        return False
    return True
