"""AnyRes in integers: canvases, tiles, padding, and the cells of a feature map that show the image.

Rounding follows LLaVA-NeXT (https://github.com/LLaVA-VL/LLaVA-NeXT, mm_utils.py and llava_arch.py): selection and
unpadding truncate float products, resizing rounds up. Pinpoints are written (width, height), as in its configs.
"""

import ast
import math
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

from mmblocks.errors import ConfigError
from mmblocks.shapes import Box, Size

Rounding = Literal["original", "transformers"]
"""How unpadding rounds: LLaVA-NeXT truncates, transformers rounds to 7 digits first (and keeps 2 cells more at times)."""

RANGE_END = re.compile(r"\(\s*(\d+)\s*x\s*(\d+)\s*\)")
ONE_CANVAS = re.compile(r"\s*([1-9]\d*)\s*x\s*([1-9]\d*)\s*")
PINPOINTS_CURE = (
    "write a range of columns x rows such as '(1x1),...,(6x6)', a list of them such as '1x2, 2x1, 2x2', or pairs of "
    "pixels (width, height) such as [(384, 768), (768, 384)]."
)


# Canvases -----------------------------------------------------------------------------------------------------------


def parse_pinpoints(pinpoints: str | Sequence[Sequence[int]], tile_px: Size) -> tuple[Size, ...]:
    """The canvases that pinpoints name, in their order (of two equally good canvases the earlier is chosen).

    A range "(1x1),...,(6x6)" counts tiles of `tile_px`, columns first; only its first and last member count. A list
    "1x2, 2x1, 2x2" of tiles has no brackets and holds just these. Anything else is a list of (width, height) in pixels,
    or the text of one.
    """
    pairs: Any = pinpoints
    if isinstance(pinpoints, str):
        if "x" in pinpoints:
            tiles = _parse_range(pinpoints) if "(" in pinpoints else _parse_list(pinpoints)
            return tuple(Size(rows * tile_px.height, columns * tile_px.width) for columns, rows in tiles)
        try:
            pairs = ast.literal_eval(pinpoints.strip())
        except (ValueError, SyntaxError) as cause:
            raise ConfigError(
                f"pinpoints={pinpoints!r} cannot be read ({cause}); {PINPOINTS_CURE}", settings=["pinpoints"]
            ) from cause
    are_sizes = isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)
        for pair in pairs
    )
    if not pairs or not are_sizes:
        raise ConfigError(
            f"pinpoints={pinpoints!r} is not a list of (width, height); {PINPOINTS_CURE}", settings=["pinpoints"]
        )
    return tuple(Size(height, width) for width, height in pairs)


def _parse_range(text: str) -> Iterator[tuple[int, int]]:
    """(columns, rows) of every canvas of a range."""
    ends = [(int(columns), int(rows)) for columns, rows in RANGE_END.findall(text)]
    if not ends:
        raise ConfigError(f"pinpoints={text!r} names no canvas; {PINPOINTS_CURE}", settings=["pinpoints"])
    (first_columns, first_rows), (last_columns, last_rows) = ends[0], ends[-1]
    if first_columns < 1 or first_rows < 1 or last_columns < first_columns or last_rows < first_rows:
        raise ConfigError(
            f"pinpoints={text!r} runs from {first_columns}x{first_rows} to {last_columns}x{last_rows} tiles, which is "
            "an empty range; start at 1x1 or more and end at no less than the start.",
            settings=["pinpoints"],
        )
    return product(range(first_columns, last_columns + 1), range(first_rows, last_rows + 1))


def _parse_list(text: str) -> Iterator[tuple[int, int]]:
    """(columns, rows) of every canvas of a list."""
    for member in text.split(","):
        match = ONE_CANVAS.fullmatch(member)
        if match is None:
            raise ConfigError(
                f"pinpoints={text!r}: {member.strip()!r} names no canvas; {PINPOINTS_CURE}", settings=["pinpoints"]
            )
        yield int(match[1]), int(match[2])


def find_best_canvas(image: Size, canvases: Sequence[Size]) -> Size:
    """The canvas that shows most of the image's pixels, and among those the one with the least waste.

    Pixels beyond the image's own area do not count, so a small image takes few tiles.
    """

    height, width = image
    area = image.area

    def rate_canvas(canvas: Size) -> tuple[int, int]:
        rows, columns = canvas
        scale = min(columns / width, rows / height)
        shown = min(int(width * scale) * int(height * scale), area)
        return shown, shown - rows * columns

    return max(canvases, key=rate_canvas)  # max keeps the earliest of equals, as the original's strict comparisons do


# Images on canvases -----------------------------------------------------------------------------------------------


def resize_within(image: Size, canvas: Size) -> Size:
    """The largest size of the image's aspect ratio inside the canvas; small images grow. Never under one pixel."""
    across, down = canvas.width / image.width, canvas.height / image.height
    if across < down:
        return Size(min(math.ceil(image.height * across), canvas.height), canvas.width)
    return Size(canvas.height, min(math.ceil(image.width * down), canvas.width))


def resize_to_cover(image: Size, view: Size) -> Size:
    """The smallest size of the image's aspect ratio that covers the view: CLIP's shortest-edge resize."""
    if image.width * view.height >= image.height * view.width:
        return Size(view.height, view.height * image.width // image.height)
    return Size(view.width * image.height // image.width, view.width)


def centre_box(inner: Size, outer: Size) -> Box:
    """The box of `inner` cells in the middle of `outer`, nearer to the top left when it cannot be exact."""
    return Box((outer.height - inner.height) // 2, (outer.width - inner.width) // 2, inner.height, inner.width)


def pad_to_square(image: Size) -> Size:
    """The smallest square that holds the image."""
    return Size(max(image), max(image))


def count_tiles(canvas: Size, tile: Size) -> Size:
    """How many whole tiles a canvas holds, (rows, columns)."""
    return Size(canvas.height // tile.height, canvas.width // tile.width)


def list_tile_windows(canvas: Size, tile: Size) -> tuple[Box, ...]:
    """The tiles of a canvas, row by row from the top left."""
    rows, columns = count_tiles(canvas, tile)
    return tuple(
        Box(row * tile.height, column * tile.width, tile.height, tile.width)
        for row in range(rows)
        for column in range(columns)
    )


def list_centred_tile_windows(box: Box, tile: Size) -> tuple[Box, ...]:
    """The whole tiles that a box holds, in its middle, row by row."""
    tiles = count_tiles(box.size, tile)
    middle = centre_box(Size(tiles.height * tile.height, tiles.width * tile.width), box.size)
    top, left = box.top + middle.top, box.left + middle.left
    return tuple(w._replace(top=top + w.top, left=left + w.left) for w in list_tile_windows(middle.size, tile))


# Feature maps -------------------------------------------------------------------------------------------------------


def find_kept_cells(cells: Size, image: Size, rounding: Rounding = "original") -> Box:
    """The part of a map of `cells` that shows the image rather than padding.

    It is empty for an image so thin that it fills no whole cell of an even side: 4000x1 pixels on 24 rows keep none.
    """
    is_wide = image.width / image.height > cells.width / cells.height
    side = cells.height if is_wide else cells.width
    shown = image.height * (cells.width / image.width) if is_wide else image.width * (cells.height / image.height)
    margin = (side - int(shown if rounding == "original" else round(shown, 7))) // 2
    if is_wide:
        return Box(margin, 0, cells.height - 2 * margin, cells.width)
    return Box(0, margin, cells.height, cells.width - 2 * margin)


def shrink_to_tiles(cells: Size, max_tiles: int, tile_cells: Size) -> Size:
    """Scale a map down to about `max_tiles` tiles of `tile_cells`, keeping its aspect ratio.

    Maps up to 1.1x too large per side (1.21x in cells) are left alone (llava_arch.py, `times > 1.1`), so a caller
    sizing buffers must allow for 1.21 times the budget. A side never falls under one cell.
    """
    times = math.sqrt(cells.area / (max_tiles * tile_cells.area))
    if times <= 1.1:
        return cells
    return Size(max(1, int(cells.height // times)), max(1, int(cells.width // times)))
