"""What the projectors with queries share: a row of queries for a grid, and refusing sizes that make no module."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


class LearnedQueries(nn.Module):
    """A projector whose answer is one row of learned queries, whatever the grid was."""

    body: nn.Module
    head: nn.Module
    spatial = False

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def out_grid(self, grid: Size) -> Size:
        return Size(1, self.queries)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def find_grid_side(name: str, setting: str, queries: int) -> int:
    """Cells a side of a square grid of queries."""
    side = math.isqrt(max(queries, 0))
    if side < 1 or side * side != queries:
        raise ConfigError(
            f"projector {name!r}: {setting}={queries} makes no square grid; write {max(side, 1) ** 2} or {(side + 1) ** 2}.",
            settings=[setting],
        )
    return side


def require_counts(name: str, **counts: int) -> None:
    """Refuse settings below 1, naming all of them at once."""
    if small := {setting: value for setting, value in counts.items() if value < 1}:
        listed = ", ".join(f"{setting}={value}" for setting, value in small.items())
        raise ConfigError(f"projector {name!r}: {listed}; write 1 or more.", settings=small)


def require_heads(name: str, dim: int, heads: int) -> None:
    """Refuse a width that attention heads cannot share."""
    if heads < 1 or dim % heads:
        raise ConfigError(
            f"projector {name!r}: dim={dim} cannot be shared by heads={heads}; write a divisor of {dim}.",
            settings=["dim", "heads"],
        )


def require_grid(name: str, got: Size, built_for: Size) -> None:
    """Refuse another grid than the one whose position embeddings were built."""
    if got != built_for:
        raise ConfigError(
            f"projector {name!r} was built for a grid of {built_for} cells, not {got}; build it for {got}."
        )
