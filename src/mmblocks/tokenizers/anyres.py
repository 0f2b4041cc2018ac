from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.geometry.anyres import (
    Rounding,
    count_tiles,
    find_best_canvas,
    find_kept_cells,
    list_tile_windows,
    parse_pinpoints,
    resize_within,
    shrink_to_tiles,
)
from mmblocks.geometry.views import make_squashed_view
from mmblocks.shapes import Box, Size, View, VisualPlan, VisualShape
from mmblocks.tokenizers.image_tokenizer import ImageTokenizer
from mmblocks.tokenizers.lowering import (
    LoweredPlan,
    lower_permutation,
    make_cell_codes,
    make_learned_token_codes,
    make_separable_stencil,
)
from mmblocks.tokenizers.rows import append_newline_per_line, to_rows


@dataclass(frozen=True, slots=True)
class AnyResPlan(VisualPlan):
    """`tiles` (rows, columns) of views make one map; `kept` is cut out of it and scaled to `map_cells`."""

    tiles: Size
    kept: Box
    map_cells: Size


@tokenizers.register(
    "anyres",
    source="https://llava-vl.github.io/blog/2024-01-30-llava-next/",
    tiny={"pinpoints": "(1x1),...,(2x2)"},
    verified_against="LLaVA-NeXT (golden tokens); transformers LlavaOnevision",
)
@dataclass(frozen=True, slots=True)
class AnyRes(ImageTokenizer):
    """The whole image as a base view, then its tiles on the canvas that fits its size best, as in LLaVA-NeXT.

    `merge` says how tiles become tokens: "unpad" joins them into one map, drops its padding and ends each line with a
    newline; "spatial" joins them as they are; "maxpool2x2" joins and halves them; "flat" puts one after the other.
    `max_tiles` (with "unpad") scales a map down to about that many tiles; maps up to 1.21 times larger are left alone.
    The encoder's own cropping is never used: base view and tiles are resized to the view.
    """

    spatial: bool
    pinpoints: str | Sequence[Sequence[int]] = "(1x1),...,(6x6)"
    max_tiles: int | None = None
    merge: Literal["unpad", "spatial", "flat", "maxpool2x2"] = "unpad"
    base: bool = True
    rounding: Rounding = "original"
    canvases: tuple[Size, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(
                f"tokenizer 'anyres': max_tiles={self.max_tiles}; write 1 or more, or null for no limit.",
                settings=["max_tiles"],
            )
        object.__setattr__(self, "canvases", parse_pinpoints(self.pinpoints, self.view_px))

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        return ("newline",) if self.merge == "unpad" else ()

    def find_faults(self) -> list[Fault]:
        faults, view = [], self.view_px
        if not self.spatial and self.merge != "flat":
            message = f"tokenizer 'anyres' joins tiles into one image (merge='{self.merge}'), but the features have no"
            cure = "use merge='flat' or a projector that keeps the grid."
            faults.append(Fault("", f"{message} image order; {cure}"))
        if self.max_tiles is not None and self.merge != "unpad":
            message = (
                f"tokenizer 'anyres': max_tiles={self.max_tiles} scales the unpadded map, which merge='{self.merge}'"
            )
            faults.append(Fault("", f"{message} does not make; use merge='unpad' or max_tiles=null."))
        if self.merge == "maxpool2x2" and min(self.grid) < 2:
            message = f"tokenizer 'anyres': merge='maxpool2x2' needs 2x2 cells, but a view has {self.grid}."
            faults.append(Fault("merge", message))
        if uneven := [str(c) for c in self.canvases if c.height % view.height or c.width % view.width]:
            message = f"tokenizer 'anyres': the canvases {', '.join(uneven)} (height x width) are not whole numbers of"
            cure = "write pinpoints as multiples of the view, or as a range such as '(1x1),...,(6x6)'."
            faults.append(Fault("", f"{message} {view} views; {cure}"))
        return faults

    # Integers -------------------------------------------------------------------------------------------------------

    def plan(self, visual: VisualShape) -> AnyResPlan:
        canvas = find_best_canvas(visual.size, self.canvases)
        tiles = count_tiles(canvas, self.view_px)
        joined = Size(tiles.height * self.grid.height, tiles.width * self.grid.width)
        kept = find_kept_cells(joined, visual.size, self.rounding) if self.merge == "unpad" else Box(0, 0, *joined)
        map_cells = kept.size
        if self.merge == "maxpool2x2":
            map_cells = Size(kept.height // 2, kept.width // 2)
        elif self.max_tiles is not None and kept.size.area:
            map_cells = shrink_to_tiles(kept.size, self.max_tiles, self.grid)
        newlines = map_cells.height if self.merge == "unpad" else 0
        num_tokens = self.base * self.grid.area + map_cells.area + newlines
        resized, windows = resize_within(visual.size, canvas), list_tile_windows(canvas, self.view_px)
        views = [View(0, visual.size, resized, canvas, window) for window in windows]
        if self.base:
            views.insert(0, make_squashed_view(0, visual.size, self.view_px))
        return AnyResPlan(tuple(views), num_tokens, tiles, kept, map_cells)

    # Tensors --------------------------------------------------------------------------------------------------------

    def assemble(self, x: Tensor, plan: AnyResPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(base view and tiles, h, w, d) to (plan.num_tokens, d): the base view's rows first, without newlines."""
        if self.merge == "flat":
            return to_rows(x)
        base, kept = self._split_views(x, plan)
        if self.merge == "unpad":
            rows = append_newline_per_line(_scale_map(kept, plan.map_cells), learned_tokens["newline"])
        elif self.merge == "maxpool2x2":
            halved = F.max_pool2d(rearrange(kept, "1 h w d -> 1 d h w"), 2)
            rows = to_rows(rearrange(halved, "1 d h w -> 1 h w d"))
        else:
            rows = to_rows(kept)
        return torch.cat([to_rows(base), rows])

    lowerable_assemble = assemble

    def lower_plan(self, plan: AnyResPlan) -> LoweredPlan | None:
        if self.merge == "maxpool2x2":
            return None
        if plan.map_cells == plan.kept.size:
            return lower_permutation(self, plan)
        base, kept = self._split_views(make_cell_codes(len(plan.views), self.grid), plan)
        scaling = make_separable_stencil(_scale_map, plan.kept.size, plan.map_cells)
        lines = append_newline_per_line(
            scaling(kept), make_learned_token_codes(self.learned_tokens, scaling.reads_per_cell)["newline"]
        )
        return LoweredPlan.from_parts([LoweredPlan.from_codes(to_rows(base)), LoweredPlan.from_codes(lines)])

    def _split_views(self, x: Tensor, plan: AnyResPlan) -> tuple[Tensor, Tensor]:
        """The base view, if there is one, and the kept part of the map that the tiles make."""
        first = int(self.base)
        joined = rearrange(x[first:], "(rows columns) h w d -> 1 (rows h) (columns w) d", rows=plan.tiles.height)
        top, left, height, width = plan.kept
        return x[:first], joined[:, top : top + height, left : left + width]


def _scale_map(x: Tensor, cells: Size) -> Tensor:
    """Scale maps (n, h, w, d) to `cells`, bilinear, corners not aligned, no antialiasing, as LLaVA-NeXT does."""
    if cells == (x.shape[1], x.shape[2]):
        return x
    scaled = F.interpolate(rearrange(x, "n h w d -> n d h w"), size=tuple(cells), mode="bilinear")
    return rearrange(scaled, "n d h w -> n h w d")


# LLaVA-NeXT's five canvases, the same in tiles for CLIP's 336 pixels (v1.6) and for SigLIP's 384 ("a4").
tokenizers.preset("anyres_next", of="anyres", pinpoints="1x2, 2x1, 2x2, 3x1, 1x3")
tokenizers.preset("anyres_max", of="anyres", max_tiles=9)
tokenizers.preset("anyres_tiny", of="anyres", pinpoints="(1x1),...,(2x2)", max_tiles=4)
