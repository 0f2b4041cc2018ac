"""Images of what a model is shown: views as boxes on the original's pixels, and distributions of a mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mmblocks.data.inspect.figures import MEASURES, InspectedVisual, SourceFigures
from mmblocks.data.media.visuals import load_frames
from mmblocks.shapes import Size, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[int, int, int]
PAPER: Colour = (255, 255, 255)
INK: Colour = (36, 41, 47)
PADDING: Colour = (201, 205, 210)
STRIPES: Colour = (167, 173, 180)
BOXES: tuple[Colour, ...] = (
    (214, 39, 40),
    (31, 119, 180),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (23, 190, 207),
)
IMAGE_PX, FRAME_PX = 560, 220
"""Longest side of a drawn image, and of a drawn frame of a video."""
CAPTION_PX, GAP_PX, WIDEST_PX = 18, 12, 1200
STRIPE_PX = 8
BARS = 40


class Region(NamedTuple):
    """A rectangle in the pixels of a frame; it leaves the frame where padding is seen, and may begin between pixels."""

    top: float
    left: float
    height: float
    width: float


def find_region(view: View, size: Size) -> Region:
    """Which part of a frame of `size` pixels a view shows: its window, traced back through canvas, resize and framing."""
    scale = view.framed.height / view.resized.height, view.framed.width / view.resized.width
    top, left = (
        (begin - (canvas - resized) // 2) * by - (framed - side) // 2
        for begin, canvas, resized, by, framed, side in zip(
            view.window[:2], view.canvas, view.resized, scale, view.framed, size, strict=True
        )
    )
    return Region(top, left, view.window.height * scale[0], view.window.width * scale[1])


# Views on an image ---------------------------------------------------------------------------------------------------


def draw_visual(shown: InspectedVisual) -> Image.Image:
    """A visual with its views drawn as numbered boxes: of an image one panel per resize, of a video one per frame.

    Views are numbered from 1 in the order of their tokens. Grey stripes are padding.
    """
    images = load_frames(shown.visual, (number for number, _ in shown.frames), shown.images)
    is_video = shown.shape.kind == "video"
    groups: dict[tuple[object, ...], list[tuple[int, View]]] = {}  # views that share a frame and a resize
    for number, view in enumerate(shown.routed.plan.views, start=1):
        key = (view.frame, view.framed, view.resized, view.canvas, view.resize)
        groups.setdefault(key, []).append((number, view))
    panels = []
    for views in groups.values():
        (first, view), (last, _) = views[0], views[-1]
        caption = f"view {first}" if len(views) == 1 else f"views {first}-{last}"
        if is_video:
            caption += f": frame {view.frame}, {shown.shape.compute_frame_time_s(view.frame):.2f} s"
        else:
            caption += f": resized to {_format_size(view.resized)} on {_format_size(view.canvas)}"
        drawn = draw_views(images[view.frame], views, FRAME_PX if is_video else IMAGE_PX)
        width = max(drawn.width, math.ceil(_load_font().getlength(caption)))
        panel = Image.new("RGB", (width, drawn.height + CAPTION_PX), PAPER)
        ImageDraw.Draw(panel).text((0, 2), caption, INK, _load_font())
        panel.paste(drawn, (0, CAPTION_PX))
        panels.append(panel)
    return _join_panels(panels)


def draw_views(image: Image.Image, views: Sequence[tuple[int, View]], longest_px: int = IMAGE_PX) -> Image.Image:
    """An image with the regions of some views as boxes, each with its number; what lies outside of it is padding.

    Drawn so large that image and padding together are `longest_px` on their longer side.
    """
    size = Size(image.height, image.width)
    regions = [find_region(view, size) for _, view in views]
    sheet = _Sheet.from_regions([Region(0, 0, *size), *regions], longest_px)
    drawn = Image.new("RGB", (sheet.size.width, sheet.size.height), PAPER)
    for region in regions:
        sheet.draw_stripes(drawn, region)
    sheet.paste_image(drawn, image)
    for (number, _), region in zip(views, regions, strict=True):
        sheet.draw_box(drawn, region, number)
    return drawn


class _Sheet(NamedTuple):
    """Where a frame's pixels are drawn: `scale` drawn pixels each, from (top, left) on."""

    top: float
    left: float
    size: Size
    scale: float

    @classmethod
    def from_regions(cls, regions: Sequence[Region], longest_px: int) -> _Sheet:
        top, left = min(r.top for r in regions), min(r.left for r in regions)
        height = max(r.top + r.height for r in regions) - top
        width = max(r.left + r.width for r in regions) - left
        scale = longest_px / max(height, width)
        return cls(top, left, Size(max(1, round(height * scale)), max(1, round(width * scale))), scale)

    def to_drawn_pixels(self, region: Region) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in drawn pixels, the last two included."""
        left, top = (region.left - self.left) * self.scale, (region.top - self.top) * self.scale
        right, bottom = left + region.width * self.scale, top + region.height * self.scale
        return round(left), round(top), max(round(left), round(right) - 1), max(round(top), round(bottom) - 1)

    def draw_stripes(self, image: Image.Image, region: Region) -> None:
        left, top, right, bottom = self.to_drawn_pixels(region)
        patch = Image.new("RGB", (right - left + 1, bottom - top + 1), PADDING)
        draw = ImageDraw.Draw(patch)
        for begin in range(-patch.height, patch.width, STRIPE_PX):
            draw.line([(begin, patch.height), (begin + patch.height, 0)], STRIPES)
        image.paste(patch, (left, top))

    def paste_image(self, sheet: Image.Image, image: Image.Image) -> None:
        left, top, right, bottom = self.to_drawn_pixels(Region(0, 0, image.height, image.width))
        filter = Image.Resampling.NEAREST if self.scale > 1 else Image.Resampling.BOX
        sheet.paste(image.resize((right - left + 1, bottom - top + 1), filter), (left, top))

    def draw_box(self, image: Image.Image, region: Region, number: int) -> None:
        """A frame inside the region's edge, and the number in its upper left corner."""
        draw, colour, where = ImageDraw.Draw(image), BOXES[(number - 1) % len(BOXES)], self.to_drawn_pixels(region)
        draw.rectangle(where, outline=colour, width=2)
        left, top = where[:2]
        text = str(number)
        draw.rectangle([left, top, left + 6 + int(draw.textlength(text, _load_font())), top + 15], fill=colour)
        draw.text((left + 4, top + 2), text, PAPER, _load_font())


def _format_size(size: Size) -> str:
    return f"{size.width}x{size.height}"


def _join_panels(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels in rows of at most `WIDEST_PX`, the way words are set."""
    rows: list[list[Image.Image]] = [[]]
    for panel in panels:
        if rows[-1] and sum(p.width + GAP_PX for p in rows[-1]) + panel.width > WIDEST_PX:
            rows.append([])
        rows[-1].append(panel)
    width = max(sum(p.width + GAP_PX for p in row) for row in rows)
    heights = [max((p.height for p in row), default=0) + GAP_PX for row in rows]
    sheet = Image.new("RGB", (max(1, width), max(1, sum(heights))), PAPER)
    for number, row in enumerate(rows):
        left = 0
        for panel in row:
            sheet.paste(panel, (left, sum(heights[:number])))
            left += panel.width + GAP_PX
    return sheet


def _load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)


# Distributions --------------------------------------------------------------------------------------------------------


def draw_figures(figures: Sequence[SourceFigures], path: Path, title: str = "") -> None:
    """Write a PNG: for each source how many samples have how many tokens, views and labels; lines at 5, 50 and 95 %."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.8 + 1.7 * len(figures)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(figures), len(MEASURES), squeeze=False)
    for row, source in zip(grid, figures, strict=True):
        for axes, measure in zip(row, MEASURES, strict=True):
            _draw_histogram(axes, source, measure)
    figure.savefig(path, dpi=110)


def _draw_histogram(axes: Axes, source: SourceFigures, measure: str) -> None:
    values, quantiles = getattr(source, measure), source.compute_quantiles(measure)
    axes.tick_params(labelsize=7)
    if measure == MEASURES[0]:
        axes.set_title(f"{source.name[-60:]}, {source.lint.num_checked} looked at", fontsize=8, loc="left")
    if quantiles is None:
        axes.set_xlabel(f"{measure}: no sample", fontsize=7)
        return
    low, half, high, most = quantiles
    axes.set_xlabel(f"{measure}: 5 % {low}, 50 % {half}, 95 % {high}, most {most}", fontsize=7)
    first, last = int(values.min()), int(values.max())
    width = 1 + (last - first) // BARS  # bars of as many whole numbers, at most some forty
    edges = [edge - 0.5 for edge in range(first, last + width + 1, width)]
    axes.hist(values, bins=edges, color="#b9d4f5", edgecolor="#7d8590", linewidth=0.3)
    for value in (low, half, high):
        axes.axvline(value, color="#d62728", linewidth=0.8)
