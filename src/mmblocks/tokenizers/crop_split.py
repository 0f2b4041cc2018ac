from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.geometry.anyres import centred, tile_grid, tile_windows
from mmblocks.geometry.tiles import scaled_over_square
from mmblocks.shapes import Scenario, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.lowering import Lowered, moved
from mmblocks.tokenizers.rows import rows_of


@tokenizers.register(
    "crop_split",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    tiny={"side_px": 64},
    oracle="LLaVA-NeXT (golden pixels)",
)
@dataclass(frozen=True, slots=True)
class CropSplit:
    """The square in the picture's middle, scaled to a fixed side with PIL's LANCZOS and cut into tiles; no base view.

    What lies outside the square is lost, and so is what whole tiles do not cover at its edges. LLaVA-NeXT's crop_split
    cannot run with Pillow 10 or later, which lacks the old name of the filter. Takes any grid.
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
            f"tokenizer 'crop_split': side_px={self.side_px} holds no tile of {self.view_px} pixels; "
            f"write {max(self.view_px)} or more."
        ]

    def plan(self, visual: VisualShape) -> VisualPlan:
        scaled, square = scaled_over_square(visual.size, self.side_px)
        tiles = tile_grid(square.size, self.view_px)
        covered = Size(tiles.height * self.view_px.height, tiles.width * self.view_px.width)
        middle = centred(covered, square.size)
        views = []
        for tile in tile_windows(covered, self.view_px):
            top, left = square.top + middle.top + tile.top, square.left + middle.left + tile.left
            window = tile._replace(top=top, left=left)
            views.append(View(0, visual.size, scaled, scaled, window, "lanczos"))
        return VisualPlan(tuple(views), len(views) * self.grid.area)

    def count(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: VisualPlan, marks: Mapping[str, Tensor]) -> Tensor:
        """(tiles, h, w, d) to (plan.num_tokens, d), tile by tile."""
        return rows_of(x)

    def lower(self, plan: VisualPlan) -> Lowered:
        """What each token is made of, in integers."""
        return moved(self, plan)
