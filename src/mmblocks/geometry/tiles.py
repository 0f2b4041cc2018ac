"""How many tiles an image is cut into, by its aspect ratio. Integers only, (rows, columns)."""

import math

from mmblocks.shapes import Box, Size


def find_closest_tiles(image: Size, tile_px: Size, min_tiles: int, max_tiles: int) -> Size:
    """The tiles whose sheet has the aspect ratio nearest to the image's: InternVL's dynamic tiling.

    Of equally near ones the larger wins as long as the image has more than half its pixels, so that small images
    take few tiles. Nearness is the difference of width / height, in which wide images differ more than tall ones.
    """
    sides = range(1, max_tiles + 1)
    tilings = [Size(rows, columns) for columns in sides for rows in sides if min_tiles <= rows * columns <= max_tiles]
    aspect = image.width / image.height
    best, nearest = Size(1, 1), math.inf
    for tiles in sorted(tilings, key=lambda tiles: tiles.area):  # few tiles first, then few columns: it decides ties
        gap = abs(aspect - (tiles.width * tile_px.width) / (tiles.height * tile_px.height))
        fills_half = image.area > 0.5 * tile_px.area * tiles.area
        if gap < nearest or (gap == nearest and fills_half):
            best, nearest = tiles, gap
    return best


def count_long_side_tiles(image: Size, tile_px: Size, side_tiles: int) -> Size:
    """`side_tiles` along the image's longer side, and as many along the other as its aspect ratio needs: Idefics3.

    The image is first scaled, up or down, to that longer side; its other side is rounded up to an even number of
    pixels, and then to whole tiles. Neither side has more than `side_tiles`.
    """
    aspect = image.width / image.height
    # Idefics3 divides twice: a quotient may fall under the integer it came from, and then saves a row of tiles.
    if image.width >= image.height:
        long_px = side_tiles * tile_px.width
        even_px = _round_to_even(int(long_px / aspect))
        return Size(_count_tiles_along(int(long_px / (long_px / even_px)), tile_px.height, side_tiles), side_tiles)
    long_px = side_tiles * tile_px.height
    even_px = _round_to_even(int(long_px * aspect))
    return Size(side_tiles, _count_tiles_along(int(long_px * (even_px / long_px)), tile_px.width, side_tiles))


def _round_to_even(side_px: int) -> int:
    return max(side_px + side_px % 2, 1)


def _count_tiles_along(side_px: int, tile_px: int, most: int) -> int:
    return min(max(-(-side_px // tile_px), 1), most)


def scale_over_square(image: Size, side_px: int) -> tuple[Size, Box]:
    """The image scaled so that its shorter side is `side_px`, and the square in its middle: LLaVA-NeXT's crop_split.

    Half pixels round to the even side, as PIL's crop does.
    """
    if image.width < image.height:
        scaled = Size(int(side_px / (image.width / image.height)), side_px)
    else:
        scaled = Size(side_px, int(side_px * (image.width / image.height)))
    top, left = (round((side - side_px) / 2) for side in scaled)
    return scaled, Box(top, left, side_px, side_px)
