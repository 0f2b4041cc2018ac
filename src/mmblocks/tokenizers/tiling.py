from dataclasses import dataclass

from mmblocks.components import tokenizers
from mmblocks.errors import ConfigError
from mmblocks.geometry.anyres import list_tile_windows
from mmblocks.geometry.tiles import find_closest_tiles
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.image_tokenizer import ImageTokenizer


@dataclass(frozen=True, slots=True)
class TilesPlan(VisualPlan):
    """`tiles` (rows, columns) of views; a view of the whole image may follow them."""

    tiles: Size


@tokenizers.register(
    "tiling",
    source="https://arxiv.org/abs/2404.16821",
    tiny={"max_tiles": 4},
    verified_against="transformers GotOcr2 (InternVL)",
)
@dataclass(frozen=True, slots=True)
class Tiling(ImageTokenizer):
    """InternVL's dynamic tiling: the image squashed onto the tiles nearest to its aspect ratio, then a thumbnail of it.

    There are `min_tiles` to `max_tiles` tiles, and the thumbnail on top of them, except for an image of one tile.
    Tokens stand tile after tile, without learned tokens. Takes any grid.
    """

    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(
                f"tokenizer 'tiling': min_tiles={self.min_tiles} and max_tiles={self.max_tiles} leave no number of "
                "tiles; write 1 <= min_tiles <= max_tiles.",
                settings=["min_tiles", "max_tiles"],
            )

    def plan(self, visual: VisualShape) -> TilesPlan:
        tiles = find_closest_tiles(visual.size, self.view_px, self.min_tiles, self.max_tiles)
        views = make_tile_views(visual.size, tiles, self.view_px)
        if self.thumbnail and tiles.area > 1:
            views = (*views, make_squashed_view(0, visual.size, self.view_px))
        return TilesPlan(views, len(views) * self.grid.area, tiles)


def make_tile_views(size: Size, tiles: Size, view_px: Size) -> tuple[View, ...]:
    """The whole image squashed onto a sheet of (rows, columns) tiles, row by row."""
    sheet = Size(tiles.height * view_px.height, tiles.width * view_px.width)
    return tuple(View(0, size, sheet, sheet, window) for window in list_tile_windows(sheet, view_px))
