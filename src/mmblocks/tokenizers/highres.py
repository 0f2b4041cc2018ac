from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.faults import Fault
from mmblocks.geometry.anyres import centre_box, count_tiles, list_tile_windows, pad_to_square
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Scenario, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.lowering import LoweredPlan, lower_permutation
from mmblocks.tokenizers.rows import to_rows


@tokenizers.register(
    "highres",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    tiny={"side_px": 64},
    verified_against="LLaVA-NeXT (golden pixels)",
)
@dataclass(frozen=True, slots=True)
class HighRes:
    """A squashed base view, then every tile of the image padded to a square of fixed side, one after the other.

    The side never depends on the image: LLaVA-NeXT's process_highres_image takes the largest it is given. What whole
    tiles do not cover is lost at the edges. Takes any grid.
    """

    view_px: Size
    grid: Size
    side_px: int
    learned_tokens: ClassVar[tuple[str, ...]] = ()
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    def find_faults(self) -> list[Fault]:
        if self.side_px >= max(self.view_px):
            return []
        message = f"tokenizer 'highres': side_px={self.side_px} holds no tile of {self.view_px} pixels;"
        return [Fault("side_px", f"{message} write {max(self.view_px)} or more.")]

    def plan(self, visual: VisualShape) -> VisualPlan:
        sheet = Size(self.side_px, self.side_px)
        tiles = count_tiles(sheet, self.view_px)
        middle = centre_box(Size(tiles.height * self.view_px.height, tiles.width * self.view_px.width), sheet)
        views = [make_squashed_view(0, visual.size, self.view_px)]
        for tile in list_tile_windows(middle.size, self.view_px):
            window = tile._replace(top=tile.top + middle.top, left=tile.left + middle.left)
            views.append(View(0, pad_to_square(visual.size), sheet, sheet, window))
        return VisualPlan(tuple(views), len(views) * self.grid.area)

    def count_tokens(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: VisualPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(views, h, w, d) to (plan.num_tokens, d), view by view."""
        return to_rows(x)

    def lower_plan(self, plan: VisualPlan) -> LoweredPlan:
        """What each token is made of, in integers."""
        return lower_permutation(self, plan)
