"""A JPEG is decoded at a share of its sides where no view shows more, if a model reads images so."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.components import tokenizers
from mmblocks.conversation import Visual
from mmblocks.data.media.images import load_image
from mmblocks.data.media.visuals import render_visual_plan
from mmblocks.image_reading import ImageReading
from mmblocks.shapes import Size, VisualShape

REDUCED = ImageReading(decode="reduced")
FILL = (127, 127, 127)


def make_photo(size, kind="JPEG", **settings):
    """A soft texture with noise, as a file."""
    noise = np.random.default_rng(0).integers(0, 256, (size.height // 16, size.width // 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((size.width, size.height), Image.Resampling.BICUBIC).save(file, kind, **settings)
    return file.getvalue()


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.mark.parametrize(
    ("shown", "decoded"),
    [
        (Size(601, 100), Size(640, 800)),
        (Size(320, 401), Size(640, 800)),
        (Size(320, 400), Size(320, 400)),
        (Size(161, 100), Size(320, 400)),
        (Size(160, 100), Size(160, 200)),
        (Size(80, 100), Size(80, 100)),
        (Size(3, 2), Size(80, 100)),
    ],
)
def test_it_is_decoded_at_the_smallest_share_that_shows_all(shown, decoded):
    image = load_image(make_photo(Size(640, 800)), REDUCED, shown=shown)
    assert (image.height, image.width) == decoded


def test_sides_that_are_no_multiples_are_rounded_up():
    image = load_image(make_photo(Size(643, 797)), REDUCED, shown=Size(100, 80))
    assert (image.height, image.width) == Size(161, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sides_are_those_of_the_upright_image(orientation):
    stored = make_photo(Size(640, 800), **turned_by(orientation))
    whole = load_image(stored)
    image = load_image(stored, REDUCED, shown=Size(whole.height // 4, whole.width // 4))
    assert (image.height * 4, image.width * 4) == (whole.height, whole.width)
    pixels = np.asarray(image, dtype=int) - np.asarray(whole.reduce(4), dtype=int)
    assert np.abs(pixels).mean() < 2


@pytest.mark.parametrize("settings", [{"progressive": True}, {"subsampling": 0}, {}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_may_be_reduced(mode, settings):
    file = io.BytesIO()
    Image.open(io.BytesIO(make_photo(Size(320, 320)))).convert(mode).save(file, "JPEG", **settings)
    image = load_image(file.getvalue(), REDUCED, shown=Size(40, 40))
    assert image.size == (40, 40)
    whole = np.asarray(load_image(file.getvalue()).reduce(8), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - whole).mean() < 3


def test_other_formats_and_jpegs_that_were_too_large_are_left_as_they_are():
    assert load_image(make_photo(Size(320, 320), "PNG"), REDUCED, shown=Size(40, 40)).size == (320, 320)
    small = ImageReading(decode="reduced", max_px=170 * 170)
    assert load_image(make_photo(Size(320, 320)), small, shown=Size(40, 40)).size == (160, 160)


def render(stored, size, name, images):
    spec = {"name": name, **({"pinpoints": "(1x1),...,(3x3)"} if name == "anyres" else {})}
    tokenizer = tokenizers.build(spec, view_px=Size(48, 48), grid=Size(4, 4), spatial=True)
    plan = tokenizer.plan(VisualShape("image", size))
    return render_visual_plan(Visual("image", stored), plan, FILL, images=images)


@pytest.mark.parametrize("resize", ["pillow", "torch"])
@pytest.mark.parametrize("name", ["anyres", "anyres_tiny"])
def test_views_are_nearly_those_of_the_whole_image(name, resize):
    size = Size(600, 720)
    stored = make_photo(size)
    whole, reduced = (
        render(stored, size, name, ImageReading(resize=resize, decode=decode)).int() for decode in ("whole", "reduced")
    )
    assert whole.shape == reduced.shape
    assert 0 < (whole - reduced).abs().float().mean() < 3


@pytest.mark.parametrize("size", [Size(60, 70), Size(90, 95)], ids=str)
def test_images_that_views_show_in_full_are_the_same(size):
    stored = make_photo(size)
    torch.testing.assert_close(render(stored, size, "anyres", REDUCED), render(stored, size, "anyres", ImageReading()))


def test_an_image_on_a_sheet_is_decoded_whole():
    size = Size(400, 640)
    stored = make_photo(size)
    views = [render(stored, size, "pad", images) for images in (REDUCED, ImageReading())]
    torch.testing.assert_close(*views)
