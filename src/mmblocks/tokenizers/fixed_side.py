from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import tokenizers
from mmblocks.faults import Fault
from mmblocks.geometry.anyres import list_centred_tile_windows, pad_to_square
from mmblocks.geometry.tiles import scale_over_square
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Box, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.image_tokenizer import ImageTokenizer


@dataclass(frozen=True, slots=True)
class FixedSideTokenizer(ImageTokenizer):
    """A square of `side_px` pixels, cut into tiles. What whole tiles do not cover at its edges is lost."""

    side_px: int
    name: ClassVar[str]

    def find_faults(self) -> list[Fault]:
        if self.side_px >= max(self.view_px):
            return []
        message = f"tokenizer {self.name!r}: side_px={self.side_px} holds no tile of {self.view_px} pixels;"
        return [Fault("side_px", f"{message} write {max(self.view_px)} or more.")]


@tokenizers.register(
    "crop_split",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    tiny={"side_px": 64},
    verified_against="LLaVA-NeXT (golden pixels)",
)
@dataclass(frozen=True, slots=True)
class CropSplit(FixedSideTokenizer):
    """The square in the image's middle, scaled to a fixed side with PIL's LANCZOS and cut into tiles; no base view.

    What lies outside the square is lost, and so is what whole tiles do not cover at its edges. LLaVA-NeXT's crop_split
    cannot run with Pillow 10 or later, which lacks the old name of the filter. Takes any grid.
    """

    name: ClassVar[str] = "crop_split"

    def plan(self, visual: VisualShape) -> VisualPlan:
        scaled, square = scale_over_square(visual.size, self.side_px)
        windows = list_centred_tile_windows(square, self.view_px)
        views = tuple(View(0, visual.size, scaled, scaled, window, "lanczos") for window in windows)
        return VisualPlan(views, len(views) * self.grid.area)


@tokenizers.register(
    "highres",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    tiny={"side_px": 64},
    verified_against="LLaVA-NeXT (golden pixels)",
)
@dataclass(frozen=True, slots=True)
class HighRes(FixedSideTokenizer):
    """A squashed base view, then every tile of the image padded to a square of fixed side, one after the other.

    The side never depends on the image: LLaVA-NeXT's process_highres_image takes the largest it is given. What whole
    tiles do not cover is lost at the edges. Takes any grid.
    """

    name: ClassVar[str] = "highres"

    def plan(self, visual: VisualShape) -> VisualPlan:
        sheet, framed = Size(self.side_px, self.side_px), pad_to_square(visual.size)
        windows = list_centred_tile_windows(Box(0, 0, *sheet), self.view_px)
        tiles = tuple(View(0, framed, sheet, sheet, window) for window in windows)
        views = (make_squashed_view(0, visual.size, self.view_px), *tiles)
        return VisualPlan(views, len(views) * self.grid.area)
