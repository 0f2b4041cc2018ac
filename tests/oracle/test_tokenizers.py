"""Tiles as transformers cuts them: InternVL's dynamic tiling (GotOcr2's processor) and Idefics3's marked tiles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor, get_optimal_tiled_canvas
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from mmblocks.components import tokenizers
from mmblocks.data.media.pixels import render_views
from mmblocks.shapes import Size, VisualShape

SIDES = (1, 2, 3, 13, 27, 28, 29, 55, 56, 57, 83, 84, 85, 97, 111, 112, 113, 140, 167, 168, 169, 333, 640, 1279)
SIZES = [Size(*sides) for sides in itertools.product(SIDES, repeat=2)]
THIN = [Size(1, 4000), Size(4000, 1), Size(7, 3999), Size(3999, 7)]
PIXEL_SIZES = [Size(37, 53), Size(53, 37), Size(14, 14), Size(60, 20), Size(5, 90), Size(91, 47)]


def picture(size: Size) -> Image.Image:
    pixels = np.random.default_rng(size.area).integers(0, 256, (*size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def build(spec: Any, side_px: int) -> Any:
    return tokenizers.build(spec, view_px=Size(side_px, side_px), grid=Size(2, 3))


# InternVL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("min_tiles", "max_tiles"), [(1, 12), (1, 6), (2, 5), (1, 40), (7, 7), (1, 1)])
def test_pictures_are_cut_into_the_same_tiles(min_tiles, max_tiles):
    tokenizer = build({"name": "tiling", "min_tiles": min_tiles, "max_tiles": max_tiles}, 28)
    processor = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True)
    wanted = {"min_patches": min_tiles, "max_patches": max_tiles}
    wrong = []
    for size in [*SIZES, *THIN]:
        plan = tokenizer.plan(VisualShape("image", size))
        columns, rows = get_optimal_tiled_canvas(tuple(size), (28, 28), min_tiles, max_tiles)
        if plan.tiles != (rows, columns) or len(plan.views) != processor.get_number_of_image_patches(*size, wanted):
            wrong.append((size, plan.tiles, (rows, columns)))
    assert wrong == []


@pytest.mark.parametrize("size", PIXEL_SIZES, ids=str)
def test_tiles_and_thumbnail_have_the_same_pixels_in_the_same_order(size):
    plan = build("tiling", 14).plan(VisualShape("image", size))
    theirs = GotOcr2ImageProcessorPil(
        size={"height": 14, "width": 14}, crop_to_patches=True, do_rescale=False, do_normalize=False
    )
    want = theirs(picture(size), return_tensors="pt")["pixel_values"]
    assert torch.equal(render_views(picture(size), plan.views, (0, 0, 0)).float(), want.float())


# Idefics3 -----------------------------------------------------------------------------------------------------------


def their_layout(size: Size, tile_px: int, side_tiles: int) -> tuple[int, int, int]:
    """(views, rows, columns) of Idefics3's own processor; rows and columns are 0 for an image that is not cut."""
    processor = Idefics3ImageProcessor(
        size={"longest_edge": side_tiles * tile_px}, max_image_size={"longest_edge": tile_px}, return_row_col_info=True
    )
    made = processor(torch.zeros(3, *size, dtype=torch.uint8), return_tensors="pt", input_data_format="channels_first")
    return made["pixel_values"].shape[1], made["rows"][0][0], made["cols"][0][0]


@pytest.mark.parametrize(("tile_px", "side_tiles"), [(14, 4), (8, 5), (16, 1), (12, 2), (26, 3)])
def test_pictures_are_cut_into_idefics3s_rows_and_columns(tile_px, side_tiles):
    tokenizer = build({"name": "tiles_marked", "side_tiles": side_tiles}, tile_px)
    wrong = []
    for size in [*SIZES[::3], Size(1, 400), Size(400, 1)]:
        plan = tokenizer.plan(VisualShape("image", size))
        tiles = (0, 0) if plan.tiles.area == 1 else plan.tiles
        if (len(plan.views), *tiles) != (theirs := their_layout(size, tile_px, side_tiles)):
            wrong.append((size, plan.tiles, theirs))
    assert wrong == []


def their_text(rows: int, columns: int, cells: int) -> str:
    """An image as Idefics3's processor writes it into a prompt, which takes four words of its state and no tokenizer."""
    processor: Any = object.__new__(Idefics3Processor)
    processor.fake_image_token = "<fake_token_around_image>"
    processor.global_image_tag = "<global-img>"
    processor.image_token = "<image>"
    processor.image_seq_len = cells
    return processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)


@pytest.mark.parametrize("size", [Size(28, 28), Size(28, 57), Size(100, 28), Size(3, 90), Size(90, 3)], ids=str)
@pytest.mark.parametrize("side_tiles", [1, 2, 4])
def test_a_picture_is_written_as_idefics3_writes_it(size, side_tiles):
    plan = build({"name": "tiles_marked_idefics3", "side_tiles": side_tiles}, 14).plan(VisualShape("image", size))
    written = "".join(piece if isinstance(piece, str) else "<image>" * piece for piece in plan.split_into_pieces())
    rows, columns = (0, 0) if plan.tiles.area == 1 else plan.tiles
    assert written == their_text(rows, columns, cells=6)


def test_tiles_are_cut_row_by_row_and_the_whole_comes_last():
    """Colours name the tiles: nothing is resized but the whole, which shows every colour."""
    side_px, side_tiles = 14, 3
    colours = np.arange(1, 10, dtype=np.uint8).reshape(3, 3) * 20
    pixels = np.repeat(np.kron(colours, np.ones((side_px, side_px), np.uint8))[..., None], 3, axis=2)
    plan = build({"name": "tiles_marked", "side_tiles": side_tiles}, side_px).plan(VisualShape("image", Size(42, 42)))
    ours = render_views(Image.fromarray(pixels), plan.views, (0, 0, 0))
    processor = Idefics3ImageProcessor(
        size={"longest_edge": 42}, max_image_size={"longest_edge": side_px}, do_rescale=False, do_normalize=False
    )
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(ours[:-1].float(), theirs[:-1].float())
    # Their whole is resized with Lanczos, ours bicubic: two filters over edges of 20 grey levels.
    torch.testing.assert_close(ours[-1].float(), theirs[-1].float(), rtol=0, atol=8)
