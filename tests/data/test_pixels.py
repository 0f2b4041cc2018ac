"""Views are cut exactly as the original code cuts them with PIL: same sheets, same resize, same windows."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.data.media.pixels import render_views
from mmblocks.errors import DataError
from mmblocks.shapes import Box, Size, View

FILL = (122, 116, 104)


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_is(size):
    """A view that shows the whole of an image of this size, untouched."""
    return View(0, size, size, size, Box(0, 0, *size))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def exactly(got, want):
    assert torch.equal(got, want)


def test_a_view_of_the_whole_picture_is_the_picture():
    image = noise(5, 7)
    exactly(render_views(image, [as_is(Size(5, 7))], FILL)[0], pixels(image))


def test_a_resize_is_bicubic_as_pil_does_it():
    image = noise(30, 50)
    view = View(0, Size(30, 50), Size(12, 20), Size(12, 20), Box(0, 0, 12, 20))
    exactly(render_views(image, [view], FILL)[0], pixels(image.resize((20, 12), Image.Resampling.BICUBIC)))


def test_a_tall_picture_is_framed_in_the_middle_of_a_coloured_square_and_the_odd_pixel_is_on_the_right():
    image = Image.new("RGB", (2, 5), (255, 255, 255))
    row = render_views(image, [as_is(Size(5, 5))], FILL)[0, :, 2].T.tolist()
    white, fill = [255, 255, 255], list(FILL)
    assert row == [fill, white, white, fill, fill]


def test_a_wide_picture_is_framed_and_the_odd_pixel_is_below():
    image = Image.new("RGB", (4, 1), (255, 255, 255))
    column = render_views(image, [as_is(Size(4, 4))], FILL)[0, 0, :, 0].tolist()
    assert column == [FILL[0], 255, FILL[0], FILL[0]]


def test_room_on_the_canvas_is_black_whatever_the_fill():
    image = Image.new("RGB", (8, 4), (255, 255, 255))
    view = View(0, Size(4, 8), Size(4, 8), Size(7, 8), Box(0, 0, 7, 8))
    column = render_views(image, [view], FILL)[0, 0, :, 0].tolist()
    assert column == [0, 255, 255, 255, 255, 0, 0]


def test_tiles_are_windows_of_one_padded_canvas_in_the_order_of_the_views():
    image = noise(20, 60)
    canvas = Image.new("RGB", (48, 32))
    canvas.paste(image.resize((48, 16), Image.Resampling.BICUBIC), (0, 8))
    boxes = [(row, column) for row in (0, 16) for column in (0, 16, 32)]
    views = [View(0, Size(20, 60), Size(16, 48), Size(32, 48), Box(row, column, 16, 16)) for row, column in boxes]
    want = [pixels(canvas.crop((column, row, column + 16, row + 16))) for row, column in boxes]
    exactly(render_views(image, views, FILL), torch.stack(want))
    exactly(render_views(image, views[::-1], FILL), torch.stack(want[::-1]))


def test_the_picture_is_resized_once_per_sheet_and_not_once_per_tile(monkeypatch):
    resizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: resizes.append(size) or resize(self, size, *rest)
    )
    tiles = [View(0, Size(20, 20), Size(32, 32), Size(32, 32), Box(0, column, 16, 16)) for column in (0, 16)]
    base = View(0, Size(20, 20), Size(16, 16), Size(16, 16), Box(0, 0, 16, 16))
    render_views(noise(20, 20), [base, *tiles, base], FILL)
    assert resizes == [(16, 16), (32, 32)]


def test_views_are_contiguous_bytes_that_share_nothing_with_the_picture():
    image = noise(6, 6)
    got = render_views(image, [as_is(Size(6, 6))] * 2, FILL)
    assert got.dtype is torch.uint8
    assert got.is_contiguous()
    before = image.tobytes()
    got.zero_()
    assert image.tobytes() == before


def test_a_picture_larger_than_its_plan_is_refused():
    with pytest.raises(DataError, match="the image is 9x6 pixels but was planned as at most 6x6"):
        render_views(noise(9, 6), [as_is(Size(6, 6))], FILL)


def test_a_picture_that_is_not_rgb_is_refused():
    with pytest.raises(DataError, match="mode 'L' cannot be rendered; open it with load_image"):
        render_views(Image.new("L", (4, 4)), [as_is(Size(4, 4))], FILL)


@pytest.mark.parametrize("sides", [(30, 50), (7, 90), (64, 64)])
def test_torch_resizes_as_the_processors_of_torchvision_do(sides):
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    image = noise(*sides)
    view = View(0, Size(*sides), Size(33, 41), Size(33, 41), Box(0, 0, 33, 41))
    want = resize(pixels(image).contiguous(), [33, 41], InterpolationMode.BICUBIC, antialias=True)
    exactly(render_views(image, [view], FILL, "torch")[0], want)


def test_torch_cuts_frames_and_canvases_as_pil_does_and_rounds_a_little_otherwise():
    image = Image.fromarray(np.asarray(noise(5, 8)).repeat(8, axis=0).repeat(8, axis=1))
    views = [
        View(0, Size(64, 64), Size(24, 24), Size(24, 24), Box(0, 0, 24, 24)),
        View(0, Size(40, 64), Size(40, 64), Size(48, 72), Box(24, 48, 24, 24)),
        View(0, Size(40, 64), Size(30, 48), Size(48, 48), Box(0, 24, 24, 24)),
        View(0, Size(40, 64), Size(30, 48), Size(48, 48), Box(24, 0, 24, 24), "lanczos"),
    ]
    by_torch, by_pil = (render_views(image, views, FILL, resizer).int() for resizer in ("torch", "pillow"))
    assert (by_torch - by_pil).abs().amax() <= 2
    exactly(by_torch[[1, 3]], by_pil[[1, 3]])  # nothing to resize, and Lanczos


def test_a_window_beside_the_picture_is_black():
    view = View(0, Size(4, 4), Size(4, 4), Size(12, 4), Box(0, 0, 4, 4))
    exactly(render_views(noise(4, 4), [view], FILL)[0], torch.zeros(3, 4, 4, dtype=torch.uint8))


def test_a_window_of_a_picture_larger_than_its_canvas_is_its_middle():
    image = noise(9, 8)
    view = View(0, Size(9, 8), Size(9, 8), Size(4, 4), Box(1, 0, 3, 3))
    canvas = Image.new("RGB", (4, 4))
    canvas.paste(image, (-2, -3))
    exactly(render_views(image, [view], FILL)[0], pixels(canvas.crop((0, 1, 3, 4))))
