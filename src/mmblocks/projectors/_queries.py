"""What the projectors with queries share."""

import math

from mmblocks.errors import ConfigError
from mmblocks.projectors._base import BodyAndHead
from mmblocks.shapes import Size


class LearnedQueries(BodyAndHead):
    """A projector to one row of learned queries, for any grid."""

    spatial = False

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def out_grid(self, grid: Size) -> Size:
        return Size(1, self.queries)


def find_grid_side(name: str, setting: str, queries: int) -> int:
    """Cells a side of a square grid of queries."""
    side = math.isqrt(max(queries, 0))
    if side < 1 or side * side != queries:
        raise ConfigError(
            f"projector {name!r}: {setting}={queries} makes no square grid; write {max(side, 1) ** 2} or {(side + 1) ** 2}.",
            settings=[setting],
        )
    return side


def require_heads(name: str, dim: int, heads: int) -> None:
    """Refuse a width that is no multiple of the attention heads."""
    if heads < 1 or dim % heads:
        raise ConfigError(
            f"projector {name!r}: dim={dim} cannot be shared by heads={heads}; write a divisor of {dim}.",
            settings=["dim", "heads"],
        )


def require_grid(name: str, got: Size, built_for: Size) -> None:
    """Refuse another grid than that of the position embeddings."""
    if got != built_for:
        raise ConfigError(
            f"projector {name!r} was built for a grid of {built_for} cells, not {got}; build it for {got}."
        )
