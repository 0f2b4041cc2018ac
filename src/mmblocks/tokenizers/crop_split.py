from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.faults import Fault
from mmblocks.geometry.anyres import centre_box, count_tiles, list_tile_windows
from mmblocks.geometry.tiles import scale_over_square
from mmblocks.shapes import Scenario, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.lowering import LoweredPlan, lower_permutation
from mmblocks.tokenizers.rows import to_rows


@tokenizers.register(
    "crop_split",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    tiny={"side_px": 64},
    verified_against="LLaVA-NeXT (golden pixels)",
)
@dataclass(frozen=True, slots=True)
class CropSplit:
    """The square in the image's middle, scaled to a fixed side with PIL's LANCZOS and cut into tiles; no base view.

    What lies outside the square is lost, and so is what whole tiles do not cover at its edges. LLaVA-NeXT's crop_split
    cannot run with Pillow 10 or later, which lacks the old name of the filter. Takes any grid.
    """

    view_px: Size
    grid: Size
    side_px: int
    learned_tokens: ClassVar[tuple[str, ...]] = ()
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    def find_faults(self) -> list[Fault]:
        if self.side_px >= max(self.view_px):
            return []
        message = f"tokenizer 'crop_split': side_px={self.side_px} holds no tile of {self.view_px} pixels;"
        return [Fault("side_px", f"{message} write {max(self.view_px)} or more.")]

    def plan(self, visual: VisualShape) -> VisualPlan:
        scaled, square = scale_over_square(visual.size, self.side_px)
        tiles = count_tiles(square.size, self.view_px)
        covered = Size(tiles.height * self.view_px.height, tiles.width * self.view_px.width)
        middle = centre_box(covered, square.size)
        views = []
        for tile in list_tile_windows(covered, self.view_px):
            top, left = square.top + middle.top + tile.top, square.left + middle.left + tile.left
            window = tile._replace(top=top, left=left)
            views.append(View(0, visual.size, scaled, scaled, window, "lanczos"))
        return VisualPlan(tuple(views), len(views) * self.grid.area)

    def count_tokens(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: VisualPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(tiles, h, w, d) to (plan.num_tokens, d), tile by tile."""
        return to_rows(x)

    def lower_plan(self, plan: VisualPlan) -> LoweredPlan:
        """What each token is made of, in integers."""
        return lower_permutation(self, plan)
