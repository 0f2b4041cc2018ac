"""Work shared out so that no rank waits long for another."""

import heapq
from collections.abc import Sequence

import numpy as np


def deal_longest_first(costs: Sequence[float] | np.ndarray, ranks: int, *, even: bool = True) -> list[list[int]]:
    """Numbers of pieces of work by rank: the most expensive first, each to the rank that has least to do.

    even: no rank gets more than ceil(pieces / ranks) of them; ranks that get fewer have to be given fillers, so that all
    run equally many forward passes, as sharded weights need. Each rank's pieces stand in their own order. Equal costs
    are ordered by number, so every rank that computes this finds the same.
    """
    costs = np.asarray(costs, dtype=np.float64)
    most = -(-len(costs) // ranks) if even else len(costs)
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    waiting = [(0.0, rank) for rank in range(ranks)]
    for number in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(waiting)
        dealt[rank].append(number)
        if len(dealt[rank]) < most:
            heapq.heappush(waiting, (load + float(costs[number]), rank))
    return [sorted(pieces) for pieces in dealt]


def deal_in_turn(pieces: int, ranks: int) -> list[list[int]]:
    """Numbers of pieces by rank, dealt one after another."""
    return [list(range(rank, pieces, ranks)) for rank in range(ranks)]


def compute_efficiency(costs: Sequence[float] | np.ndarray, dealt: Sequence[Sequence[int]]) -> float:
    """Mean over ranks divided by the slowest: the share of time in which ranks work instead of waiting."""
    costs = np.asarray(costs, dtype=np.float64)
    loads = [float(costs[list(pieces)].sum()) for pieces in dealt]
    return float(np.mean(loads)) / max(loads) if max(loads, default=0.0) > 0 else 1.0
