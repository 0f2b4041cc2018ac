from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.geometry.anyres import centred, padded_square, tile_grid, tile_windows
from mmblocks.geometry.views import squashed
from mmblocks.shapes import Scenario, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.lowering import Lowered, moved
from mmblocks.tokenizers.rows import rows_of


@tokenizers.register(
    "highres",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    tiny={"side_px": 64},
    oracle="LLaVA-NeXT (golden pixels)",
)
@dataclass(frozen=True, slots=True)
class HighRes:
    """A squashed base view, then every tile of the picture padded to a square of fixed side, one after the other.

    The side never depends on the picture: LLaVA-NeXT's process_highres_image takes the largest it is given. What whole
    tiles do not cover is lost at the edges. Takes any grid.
    """

    view_px: Size
    grid: Size
    side_px: int
    marks: ClassVar[tuple[str, ...]] = ()
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    def reasons_against(self) -> list[str]:
        if self.side_px >= max(self.view_px):
            return []
        return [
            f"tokenizer 'highres': side_px={self.side_px} holds no tile of {self.view_px} pixels; "
            f"write {max(self.view_px)} or more."
        ]

    def plan(self, visual: VisualShape) -> VisualPlan:
        sheet = Size(self.side_px, self.side_px)
        tiles = tile_grid(sheet, self.view_px)
        middle = centred(Size(tiles.height * self.view_px.height, tiles.width * self.view_px.width), sheet)
        views = [squashed(0, visual.size, self.view_px)]
        for tile in tile_windows(middle.size, self.view_px):
            window = tile._replace(top=tile.top + middle.top, left=tile.left + middle.left)
            views.append(View(0, padded_square(visual.size), sheet, sheet, window))
        return VisualPlan(tuple(views), len(views) * self.grid.area)

    def count(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: VisualPlan, marks: Mapping[str, Tensor]) -> Tensor:
        """(views, h, w, d) to (plan.num_tokens, d), view by view."""
        return rows_of(x)

    def lower(self, plan: VisualPlan) -> Lowered:
        """What each token is made of, in integers."""
        return moved(self, plan)
