from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.geometry.tiles import count_long_side_tiles
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Size, VisualShape
from mmblocks.tokenizers.image_tokenizer import ImageTokenizer
from mmblocks.tokenizers.rows import to_rows
from mmblocks.tokenizers.tiling import TilesPlan, make_tile_views


@tokenizers.register(
    "tiles_marked",
    source="https://arxiv.org/abs/2408.12637",
    tiny={"side_tiles": 2},
    verified_against="transformers Idefics3 (layout; pixels are resized once, not twice)",
)
@dataclass(frozen=True, slots=True)
class TilesMarked(ImageTokenizer):
    """Tiles labelled with their row and column, then the whole image, as in Idefics3 and SmolVLM.

    The image's longer side takes `side_tiles` tiles, the other as many as its aspect ratio needs. `marking="text"` writes
    "<row_1_col_2>" before a tile, "<global-img>" before the whole and a line end after each row of tiles;
    `marking="learned"` has one learned token in place of each text (row_1_col_2, global, line_end), for text tokenizers
    that would cut these texts to pieces. `around` (with "text") stands before every view and after the last; Idefics3
    has "<fake_token_around_image>". Takes any grid.
    """

    side_tiles: int = 4
    marking: Literal["text", "learned"] = "text"
    around: str = ""

    def __post_init__(self) -> None:
        if self.side_tiles < 1:
            raise ConfigError(
                f"tokenizer 'tiles_marked': side_tiles={self.side_tiles}; write 1 or more.", settings=["side_tiles"]
            )

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        if self.marking == "text":
            return ()
        sides = range(1, self.side_tiles + 1)
        return (*(f"row_{row}_col_{column}" for row, column in product(sides, sides)), "line_end", "global")

    def find_faults(self) -> list[Fault]:
        if self.marking == "text" or not self.around:
            return []
        message = f"tokenizer 'tiles_marked': around={self.around!r} is a text, and marking='learned' writes none;"
        return [Fault("around", f"{message} leave it out or use marking='text'.")]

    # Integers -------------------------------------------------------------------------------------------------------

    def plan(self, visual: VisualShape) -> TilesPlan:
        tiles = count_long_side_tiles(visual.size, self.view_px, self.side_tiles)
        tile_views = () if tiles.area == 1 else make_tile_views(visual.size, tiles, self.view_px)
        views = (*tile_views, make_squashed_view(0, visual.size, self.view_px))
        if self.marking == "learned":
            num_learned = len(views) + (tiles.height if tile_views else 0)
            return TilesPlan(views, len(views) * self.grid.area + num_learned, tiles)
        texts = tuple((n * self.grid.area, text) for n, text in enumerate(self._list_texts(tiles)))
        return TilesPlan(views, len(views) * self.grid.area, tiles, inline_texts=texts)

    def _list_texts(self, tiles: Size) -> Iterator[str]:
        """The texts before each view, and after the last."""
        if tiles.area > 1:
            for row, column in product(range(tiles.height), range(tiles.width)):
                row_end = "\n" if row > 0 and column == 0 else ""
                yield f"{row_end}{self.around}<row_{row + 1}_col_{column + 1}>"
        rows_end = "\n\n" if tiles.area > 1 else ""
        yield f"{rows_end}{self.around}<global-img>"
        yield self.around

    # Tensors --------------------------------------------------------------------------------------------------------

    def assemble(self, x: Tensor, plan: TilesPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(tiles and the whole, h, w, d) to (plan.num_tokens, d)."""
        if self.marking == "text":
            return to_rows(x)
        learned_rows = {name: weight.to(x).unsqueeze(0) for name, weight in learned_tokens.items()}
        pieces = []
        for n, tile in enumerate(x[:-1].flatten(1, 2)):
            row, column = divmod(n, plan.tiles.width)
            pieces += [learned_rows[f"row_{row + 1}_col_{column + 1}"], tile]
            if column == plan.tiles.width - 1:
                pieces.append(learned_rows["line_end"])
        return torch.cat([*pieces, learned_rows["global"], to_rows(x[-1:])])

    lowerable_assemble = assemble


tokenizers.preset("tiles_marked_idefics3", of="tiles_marked", around="<fake_token_around_image>")
tokenizers.preset("tiles_marked_learned", of="tiles_marked", marking="learned")
