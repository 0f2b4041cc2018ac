from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.geometry.anyres import list_tile_windows
from mmblocks.geometry.tiles import find_closest_tiles
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Scenario, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.lowering import LoweredPlan, lower_permutation
from mmblocks.tokenizers.rows import to_rows


@dataclass(frozen=True, slots=True)
class TilesPlan(VisualPlan):
    """`tiles` (rows, columns) of views; a view of the whole image may stand behind them."""

    tiles: Size


@tokenizers.register(
    "tiling",
    source="https://arxiv.org/abs/2404.16821",
    tiny={"max_tiles": 4},
    verified_against="transformers GotOcr2 (InternVL)",
)
@dataclass(frozen=True, slots=True)
class Tiling:
    """InternVL's dynamic tiling: the image squashed onto the tiles nearest to its shape, then a thumbnail of it.

    There are `min_tiles` to `max_tiles` tiles, and the thumbnail, which an image of one tile has not, comes on top.
    Tokens stand tile after tile without marks. Takes any grid.
    """

    view_px: Size
    grid: Size
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    learned_tokens: ClassVar[tuple[str, ...]] = ()
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(
                f"tokenizer 'tiling': min_tiles={self.min_tiles} and max_tiles={self.max_tiles} leave no number of "
                "tiles; write 1 <= min_tiles <= max_tiles.",
                settings=["min_tiles", "max_tiles"],
            )

    def find_faults(self) -> list[Fault]:
        return []

    def plan(self, visual: VisualShape) -> TilesPlan:
        tiles = find_closest_tiles(visual.size, self.view_px, self.min_tiles, self.max_tiles)
        views = make_tile_views(visual.size, tiles, self.view_px)
        if self.thumbnail and tiles.area > 1:
            views = (*views, make_squashed_view(0, visual.size, self.view_px))
        return TilesPlan(views, len(views) * self.grid.area, tiles)

    def count_tokens(self, plan: TilesPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: TilesPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(views, h, w, d) to (plan.num_tokens, d), view by view."""
        return to_rows(x)

    def lower_plan(self, plan: TilesPlan) -> LoweredPlan:
        """What each token is made of, in integers."""
        return lower_permutation(self, plan)


def make_tile_views(size: Size, tiles: Size, view_px: Size) -> tuple[View, ...]:
    """The whole image on a sheet of (rows, columns) tiles, its aspect ratio given up; row by row."""
    sheet = Size(tiles.height * view_px.height, tiles.width * view_px.width)
    return tuple(View(0, size, sheet, sheet, window) for window in list_tile_windows(sheet, view_px))
