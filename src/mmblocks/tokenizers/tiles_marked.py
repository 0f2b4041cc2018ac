from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.geometry.tiles import count_long_side_tiles
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Scenario, Size, VisualShape
from mmblocks.tokenizers.lowering import LoweredPlan, lower_permutation
from mmblocks.tokenizers.rows import to_rows
from mmblocks.tokenizers.tiling import TilesPlan, make_tile_views


@tokenizers.register(
    "tiles_marked",
    source="https://arxiv.org/abs/2408.12637",
    tiny={"side_tiles": 2},
    verified_against="transformers Idefics3 (layout; pixels are resized once, not twice)",
)
@dataclass(frozen=True, slots=True)
class TilesMarked:
    """Tiles that say their row and column, then the whole image, as in Idefics3 and SmolVLM.

    The image's longer side takes `side_tiles` tiles, the other as many as its shape needs. `marking` "told" writes
    "<row_1_col_2>" before a tile, "<global-img>" before the whole and a line end after each row of tiles; "learned" has
    one learned row in place of each text (row_1_col_2, global, line_end), for text tokenizers that would cut these
    texts to pieces. `around` (with "told") stands before every view and after the last; Idefics3 has
    "<fake_token_around_image>". Takes any grid.
    """

    view_px: Size
    grid: Size
    side_tiles: int = 4
    marking: Literal["told", "learned"] = "told"
    around: str = ""
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    def __post_init__(self) -> None:
        if self.side_tiles < 1:
            raise ConfigError(
                f"tokenizer 'tiles_marked': side_tiles={self.side_tiles}; write 1 or more.", settings=["side_tiles"]
            )

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        if self.marking == "told":
            return ()
        sides = range(1, self.side_tiles + 1)
        return (*(f"row_{row}_col_{column}" for row, column in product(sides, sides)), "line_end", "global")

    def find_faults(self) -> list[Fault]:
        if self.marking == "told" or not self.around:
            return []
        message = f"tokenizer 'tiles_marked': around={self.around!r} is a text, and marking='learned' writes none;"
        return [Fault("around", f"{message} leave it out or use marking='told'.")]

    # Integers -------------------------------------------------------------------------------------------------------

    def plan(self, visual: VisualShape) -> TilesPlan:
        tiles = count_long_side_tiles(visual.size, self.view_px, self.side_tiles)
        cut = () if tiles.area == 1 else make_tile_views(visual.size, tiles, self.view_px)
        views = (*cut, make_squashed_view(0, visual.size, self.view_px))
        if self.marking == "learned":
            learned_tokens = len(views) + (tiles.height if cut else 0)
            return TilesPlan(views, len(views) * self.grid.area + learned_tokens, tiles)
        texts = tuple((n * self.grid.area, text) for n, text in enumerate(self._list_texts(tiles)))
        return TilesPlan(views, len(views) * self.grid.area, tiles, inline_texts=texts)

    def _list_texts(self, tiles: Size) -> Iterator[str]:
        """What is told before each view, and after the last."""
        if tiles.area > 1:
            for row, column in product(range(tiles.height), range(tiles.width)):
                row_end = "\n" if row > 0 and column == 0 else ""
                yield f"{row_end}{self.around}<row_{row + 1}_col_{column + 1}>"
        rows_end = "\n\n" if tiles.area > 1 else ""
        yield f"{rows_end}{self.around}<global-img>"
        yield self.around

    def count_tokens(self, plan: TilesPlan) -> int:
        return plan.num_tokens

    # Tensors --------------------------------------------------------------------------------------------------------

    def assemble(self, x: Tensor, plan: TilesPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(tiles and the whole, h, w, d) to (plan.num_tokens, d)."""
        if self.marking == "told":
            return to_rows(x)
        pieces = []
        for n, view in enumerate(x[:-1].flatten(1, 2)):
            row, column = divmod(n, plan.tiles.width)
            pieces += [_to_row(learned_tokens[f"row_{row + 1}_col_{column + 1}"], x), view]
            if column == plan.tiles.width - 1:
                pieces.append(_to_row(learned_tokens["line_end"], x))
        return torch.cat([*pieces, _to_row(learned_tokens["global"], x), to_rows(x[-1:])])

    def lower_plan(self, plan: TilesPlan) -> LoweredPlan:
        """What each token is made of, in integers."""
        return lower_permutation(self, plan)


def _to_row(learned_token: Tensor, like: Tensor) -> Tensor:
    return learned_token.to(like).unsqueeze(0)


tokenizers.preset("tiles_marked_idefics3", of="tiles_marked", around="<fake_token_around_image>")
tokenizers.preset("tiles_marked_learned", of="tiles_marked", marking="learned")
