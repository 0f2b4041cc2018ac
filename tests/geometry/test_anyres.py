"""Integer laws of images on canvases. No torch."""

from __future__ import annotations

import math
import random

import pytest

from mmblocks.errors import ConfigError
from mmblocks.geometry.anyres import (
    centre_box,
    count_tiles,
    find_best_canvas,
    find_kept_cells,
    list_tile_windows,
    pad_to_square,
    parse_pinpoints,
    resize_to_cover,
    resize_within,
    shrink_to_tiles,
)
from mmblocks.geometry.views import make_cropped_view, make_padded_view, make_processed_view, make_squashed_view
from mmblocks.shapes import Box, Size, View

RANGE = "(1x1),...,(6x6)"
SIGLIP = Size(384, 384), Size(27, 27)
CLIP = Size(336, 336), Size(24, 24)
SIGLIP_A4 = [(384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152)]
NEXT = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]

EXTREMES = [Size(1, 1), Size(1, 10_000), Size(10_000, 1), Size(1, 4000), Size(9999, 10_000)]


def some_sizes(n: int, longest: int = 5000) -> list[Size]:
    draw = random.Random(0)
    return EXTREMES + [Size(draw.randint(1, longest), draw.randint(1, longest)) for _ in range(n)]


def map_of(image: Size, pinpoints, tile: Size, cells: Size, max_tiles: int | None) -> tuple[Size, Size]:
    """The tiles of an image and the map that is left of them, unpadded and perhaps scaled down."""
    tiles = count_tiles(find_best_canvas(image, parse_pinpoints(pinpoints, tile)), tile)
    kept = find_kept_cells(Size(tiles.height * cells.height, tiles.width * cells.width), image).size
    return tiles, shrink_to_tiles(kept, max_tiles, cells) if max_tiles else kept


def tokens(image: Size, pinpoints, tile: Size, cells: Size, max_tiles: int | None) -> int:
    _, left = map_of(image, pinpoints, tile, cells, max_tiles)
    return cells.area + left.height * (left.width + 1)


# Worked examples ----------------------------------------------------------------------------------------------------
# (height, width), tiles (rows, columns), map cells, tokens with the base view and one newline per line


@pytest.mark.parametrize(
    ("image", "tiles", "cells", "count"),
    [
        ((672, 336), (2, 1), (54, 27), 2241),
        ((700, 1000), (2, 3), (54, 77), 4941),
        ((300, 4000), (1, 6), (13, 162), 2848),
        ((384, 384), (1, 1), (27, 27), 1485),
        ((1, 1), (1, 1), (27, 27), 1485),
        ((480, 640), (2, 2), (40, 54), 2929),
        ((1080, 1920), (3, 5), (60, 108), 7269),
        ((2304, 2304), (6, 6), (81, 81), 7371),
        ((800, 1200), (3, 4), (73, 108), 8686),
        ((1153, 944), (4, 3), (98, 81), 8765),
    ],
)
def test_onevision_at_most_about_nine_tiles(image, tiles, cells, count):
    assert map_of(Size(*image), RANGE, *SIGLIP, max_tiles=9) == (tiles, cells)
    assert tokens(Size(*image), RANGE, *SIGLIP, max_tiles=9) == count


@pytest.mark.parametrize(
    ("image", "tiles", "cells", "count"),
    [
        ((672, 336), (2, 1), (54, 27), 2241),
        ((700, 1000), (2, 2), (38, 54), 2819),
        ((300, 4000), (1, 3), (7, 81), 1303),
        ((384, 384), (2, 1), (28, 27), 1513),
        ((1, 1), (2, 1), (28, 27), 1513),
    ],
)
def test_siglip_with_five_canvases(image, tiles, cells, count):
    assert map_of(Size(*image), SIGLIP_A4, *SIGLIP, max_tiles=None) == (tiles, cells)
    assert tokens(Size(*image), SIGLIP_A4, *SIGLIP, max_tiles=None) == count


@pytest.mark.parametrize(
    ("image", "tiles", "cells", "count"),
    [
        ((672, 336), (2, 1), (48, 24), 1776),
        ((700, 1000), (2, 2), (34, 48), 2242),
        ((300, 4000), (1, 3), (6, 72), 1014),
        ((384, 384), (2, 2), (48, 48), 2928),
        ((1, 1), (2, 1), (24, 24), 1176),
    ],
)
def test_llava_next_with_five_canvases(image, tiles, cells, count):
    assert map_of(Size(*image), NEXT, *CLIP, max_tiles=None) == (tiles, cells)
    assert tokens(Size(*image), NEXT, *CLIP, max_tiles=None) == count


def test_a_picture_thinner_than_half_a_cell_of_an_even_map_leaves_only_the_base_view():
    assert find_kept_cells(Size(24, 48), Size(1, 4000)) == Box(12, 0, 0, 48)
    assert tokens(Size(1, 4000), NEXT, *CLIP, max_tiles=None) == 24 * 24


def test_transformers_rounds_before_it_truncates():
    cells, image = Size(54, 27), Size(423, 47)
    assert find_kept_cells(cells, image).width == 5
    assert find_kept_cells(cells, image, "transformers").width == 7


# Laws ---------------------------------------------------------------------------------------------------------------


def test_no_picture_exceeds_the_greatest_count():
    canvases = parse_pinpoints(RANGE, SIGLIP[0])
    counts = [tokens(image, canvases_wh(canvases), *SIGLIP, max_tiles=9) for image in some_sizes(200, 1500)]
    assert max(counts) <= 8765
    assert min(counts) >= 729


def canvases_wh(canvases) -> list[tuple[int, int]]:
    return [(c.width, c.height) for c in canvases]


def test_a_resized_picture_fills_one_side_of_its_canvas_and_stays_inside():
    canvas = Size(768, 1152)
    for image in some_sizes(300):
        resized = resize_within(image, canvas)
        assert resized.height == canvas.height or resized.width == canvas.width, image
        assert 1 <= resized.height <= canvas.height, image
        assert 1 <= resized.width <= canvas.width, image


def test_a_covering_picture_has_one_side_of_the_view_and_the_other_no_shorter():
    view = Size(336, 336)
    for image in some_sizes(300):
        resized = resize_to_cover(image, view)
        assert min(resized) == 336, image
        assert (resized.height >= resized.width) == (image.height >= image.width) or resized == view, image


@pytest.mark.parametrize("rounding", ["original", "transformers"])
def test_kept_cells_lie_in_the_middle_of_the_map(rounding):
    cells = Size(54, 81)
    for image in some_sizes(300):
        box = find_kept_cells(cells, image, rounding)
        assert box.top == cells.height - box.top - box.height, image
        assert box.left == cells.width - box.left - box.width, image
        assert box.height >= 0, image
        assert box.width >= 0, image
        assert box.height == cells.height or box.width == cells.width, image


def test_a_shrunk_map_holds_no_more_than_its_budget_plus_a_fifth():
    for cells in some_sizes(300, 400):
        left = shrink_to_tiles(cells, 9, Size(27, 27))
        assert left.area <= max(1.21 * 9 * 729, max(left)), cells
        assert min(left) >= 1, cells
        assert left == cells or cells.area > 1.21 * 9 * 729, cells


@pytest.mark.parametrize(
    ("cells", "max_tiles", "tile_cells"),
    [(Size(11, 11), 1, Size(10, 10)), (Size(11, 22), 2, Size(10, 10)), (Size(44, 22), 8, Size(10, 10))],
)
def test_a_map_of_exactly_the_largest_excess_is_left_alone(cells, max_tiles, tile_cells):
    """LLaVA-NeXT shrinks where `times > 1.1` (llava_arch.py), and these maps are 1.1 times too large to the bit."""
    assert math.sqrt(cells.area / (max_tiles * tile_cells.area)) == 1.1
    assert shrink_to_tiles(cells, max_tiles, tile_cells) == cells
    one_more = Size(cells.height + 1, cells.width)
    assert shrink_to_tiles(one_more, max_tiles, tile_cells).area <= max_tiles * tile_cells.area < one_more.area


def test_tiles_cover_a_canvas_once_row_by_row():
    assert list_tile_windows(Size(4, 6), Size(2, 3)) == (
        Box(0, 0, 2, 3),
        Box(0, 3, 2, 3),
        Box(2, 0, 2, 3),
        Box(2, 3, 2, 3),
    )


def test_an_earlier_canvas_wins_a_tie():
    tall, wide = Size(672, 336), Size(336, 672)
    assert find_best_canvas(Size(1, 1), [tall, wide]) == tall
    assert find_best_canvas(Size(1, 1), [wide, tall]) == wide


def test_one_pixel_more_than_a_canvas_takes_a_larger_one():
    canvases = parse_pinpoints(RANGE, Size(384, 384))
    assert find_best_canvas(Size(1152, 1152), canvases) == Size(1152, 1152)
    assert find_best_canvas(Size(1152, 1153), canvases) == Size(1152, 1536)


# Views --------------------------------------------------------------------------------------------------------------


def test_siglip_squashes_and_clip_cuts_the_middle():
    image, view = Size(100, 301), Size(50, 50)
    assert make_squashed_view(3, image, view) == View(3, image, view, view, Box(0, 0, 50, 50))
    assert make_cropped_view(3, image, view) == View(3, image, Size(50, 150), Size(50, 150), Box(0, 50, 50, 50))
    assert make_processed_view(3, image, view, squash=True) == make_squashed_view(3, image, view)
    assert make_processed_view(3, image, view, squash=False) == make_cropped_view(3, image, view)


def test_a_padded_picture_stands_in_a_square_of_its_long_side():
    assert pad_to_square(Size(37, 50)) == (50, 50)
    assert make_padded_view(0, Size(37, 50), Size(24, 24)) == View(
        0, Size(50, 50), Size(24, 24), Size(24, 24), Box(0, 0, 24, 24)
    )


def test_an_odd_pixel_of_room_goes_below_and_to_the_right():
    assert centre_box(Size(37, 50), Size(50, 51)) == Box(6, 0, 37, 50)


# Pinpoints ----------------------------------------------------------------------------------------------------------


def test_a_range_counts_columns_first_and_rows_fastest():
    assert parse_pinpoints("(1x1),...,(2x3)", Size(10, 10)) == (
        *[(10, 10), (20, 10), (30, 10)],
        *[(10, 20), (20, 20), (30, 20)],
    )


def test_a_range_takes_views_of_any_size():
    assert parse_pinpoints("(1x1), (1x2)", Size(392, 518)) == (Size(392, 518), Size(784, 518))


def test_a_list_of_tiles_holds_just_these_columns_first():
    assert parse_pinpoints("1x2, 2x1,3 x 1", Size(10, 20)) == (Size(20, 20), Size(10, 40), Size(10, 60))


def test_pairs_are_width_first_as_text_and_as_lists():
    expected = (Size(768, 384), Size(384, 768))
    assert parse_pinpoints("[(384, 768), (768, 384)]", Size(384, 384)) == expected
    assert parse_pinpoints([[384, 768], [768, 384]], Size(384, 384)) == expected


@pytest.mark.parametrize(
    ("pinpoints", "says"),
    [
        ("(6x6),...,(1x1)", "from 6x6 to 1x1 tiles, which is an empty range"),
        ("(0x1),...,(2x2)", "start at 1x1 or more"),
        ("six by six", "names no canvas"),
        ("1x2, two", "'two' names no canvas"),
        ("0x1, 1x1", "'0x1' names no canvas"),
        ("1x1,", "'' names no canvas"),
        ("[(384, 768", "cannot be read"),
        ("384", "is not a list of"),
        ("[]", "is not a list of"),
        ([], "is not a list of"),
        ([(384,)], "is not a list of"),
        ([(384, 0)], "is not a list of"),
        ([("384", "768")], "is not a list of"),
    ],
)
def test_pinpoints_that_name_no_canvas_are_refused_with_a_cure(pinpoints, says):
    with pytest.raises(ConfigError, match="pinpoints=") as refusal:
        parse_pinpoints(pinpoints, Size(384, 384))
    assert says in str(refusal.value)
