"""Any picture a user can have: right pixels, or an error that names the file, says what is wrong and what to do."""

import base64
import gc
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmblocks.data.media.images import image_size, load_image
from mmblocks.errors import DataError
from mmblocks.image_reading import ImageReading
from mmblocks.shapes import Size

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def noise(height=12, width=20, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(height, width, pixels=b""):
    """A PNG that promises this many grey pixels, and holds the given compressed ones."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def upright_corners():
    """40 x 60 with a colour in each corner, so that every turn and flip shows."""
    image = Image.new("RGB", (60, 40))
    for colour, corner in [(RED, (0, 0)), (GREEN, (30, 0)), (BLUE, (0, 20)), (WHITE, (30, 20))]:
        image.paste(colour, (*corner, corner[0] + 30, corner[1] + 20))
    return image


def corners(image):
    right, bottom = image.width - 8, image.height - 8
    return [image.getpixel(at) for at in [(7, 7), (right, 7), (7, bottom), (right, bottom)]]


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


# How a picture must be stored so that the orientation tag turns it upright: the inverse of each turn.
STORED_BY = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


LIGHTEST_LOSS = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


# --- where pictures come from


@pytest.mark.parametrize("form", ["path", "text path", "bytes", "data: URI", "PIL"])
def test_a_picture_is_the_same_from_wherever_it_comes(form, tmp_path):
    picture = Image.fromarray(noise())
    data = encoded(picture, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    source = {"path": path, "text path": str(path), "bytes": data, "data: URI": uri, "PIL": picture}[form]
    loaded = load_image(source)
    assert (loaded.mode, np.array(loaded).tolist()) == ("RGB", noise().tolist())
    assert image_size(source) == Size(12, 20)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_listed_format_reads_as_pil_reads_it(format, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(upright_corners(), format))
    with Image.open(path) as image:
        assert load_image(path).tobytes() == image.convert("RGB").tobytes()
    assert image_size(path) == Size(40, 60)


def test_a_loaded_picture_has_no_file_and_no_metadata_left_on_it(tmp_path):
    path = tmp_path / "turned.jpg"
    upright_corners().save(path, exif=exif(6))
    loaded = load_image(path)
    path.unlink()
    assert type(loaded) is Image.Image
    assert loaded.info == {}
    assert load_image(loaded).tobytes() == loaded.tobytes()


def test_a_pil_image_is_not_changed_by_reading_it():
    image = Image.fromarray(noise())
    image.info["note"] = "mine"
    load_image(image).putpixel((0, 0), RED)
    assert (image.info, np.array(image).tolist()) == ({"note": "mine"}, noise().tolist())


URLS = ["http://127.0.0.1/a.png", "HTTPS://127.0.0.1/a.png", "s3://bucket/a.png", "http:a.png", "//127.0.0.1/a.png"]


@pytest.mark.parametrize("url", [*URLS, "https://127.0.0.1/?" + "q" * 5000])
@pytest.mark.parametrize("form", [str, Path])
def test_urls_are_refused(url, form):
    with pytest.raises(DataError, match=r"127\.0\.0\.1|bucket|http:a") as raised:
        image_size(form(url))
    assert "mmblocks opens no URLs; download the image and pass its path" in str(raised.value)


@pytest.mark.parametrize("url", ["file:///a%20b.png", "file:/a b.png", "FILE:/a%20b.png"])
@pytest.mark.parametrize("form", [str, Path])
def test_a_file_url_is_told_its_path(url, form):
    with pytest.raises(DataError, match=r"mmblocks opens no URLs; write the path alone: /a b\.png"):
        load_image(form(url))


def test_a_file_whose_name_looks_like_a_url_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("https:", "file:"):
        (tmp_path / name).mkdir()
        Image.fromarray(noise()).save(tmp_path / name / "a.png")
        assert load_image(f"{name}/a.png").size == (20, 12)
    assert load_image(f"/{tmp_path}/file:/a.png").size == (20, 12)  # two slashes in front


@pytest.mark.parametrize("path", ["C:\\photos\\a.png", "C:/photos/a.png", "photos/a.png"])
def test_paths_are_not_taken_for_urls(path):
    with pytest.raises(DataError, match="there is no such file; check the path"):
        load_image(path)


# --- modes


def stored_in_mode(mode):
    return Image.fromarray(noise()).convert(mode)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "PNG"),
        ("1", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("LA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "JPEG"),
    ],
)
def test_other_modes_become_rgb_as_pil_converts_them(mode, format):
    data = encoded(stored_in_mode(mode), format)
    with Image.open(io.BytesIO(data)) as image:
        assert load_image(data).tobytes() == image.convert("RGB").tobytes()


def test_a_cmyk_jpeg_has_the_colours_it_was_made_of():
    loaded = load_image(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.array(loaded).astype(int) - RED).max() <= 3  # JPEG loses a level or two


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_read(format):
    frames = [Image.new("RGB", (16, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    loaded = load_image(data)
    assert loaded.size == (16, 8)
    assert np.abs(np.array(loaded).astype(int) - RED).max() <= 6  # lossy AVIF and WebP


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_thin_pictures_are_pictures(size):
    data = encoded(Image.new("RGB", size), "PNG")
    assert load_image(data).size == size
    assert image_size(data) == Size(size[1], size[0])


# --- EXIF


@pytest.mark.parametrize("orientation", STORED_BY)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright_and_planned_at_that_size(orientation, format):
    image, turn = upright_corners(), STORED_BY[orientation]
    stored = image if turn is None else image.transpose(turn)
    data = encoded(stored, format, exif=exif(orientation), **LIGHTEST_LOSS.get(format, {}))
    loaded = load_image(data)
    assert np.abs(np.subtract(corners(loaded), corners(image))).max() <= 2  # JPEG at its best
    assert image_size(data) == Size(loaded.height, loaded.width) == Size(40, 60)


def test_exif_can_be_left_alone_as_the_original_does():
    data = encoded(upright_corners(), "PNG", exif=exif(6))
    assert load_image(data, ImageReading(exif=False)).size == (60, 40)
    assert image_size(data, ImageReading(exif=False)) == Size(40, 60)
    assert image_size(data) == Size(60, 40)


def test_orientation_behind_the_pixels_of_a_png_counts_too():
    data = encoded(upright_corners(), "PNG")
    end = png_chunk(b"IEND", b"")
    late = data.removesuffix(end) + png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + end
    assert image_size(late) == Size(60, 40)
    assert load_image(late).size == (40, 60)


def test_an_opened_pil_file_is_turned_and_can_still_be_used(tmp_path):
    path = tmp_path / "turned.png"
    upright_corners().save(path, exif=exif(6))
    with Image.open(path) as image:
        assert image_size(image) == Size(60, 40)
        assert load_image(image).size == (40, 60)
        assert image.size == (60, 40)


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_an_orientation_that_does_not_exist_is_no_orientation(orientation):
    data = encoded(upright_corners(), "JPEG", exif=exif(orientation))
    assert image_size(data) == Size(40, 60)
    assert load_image(data).size == (60, 40)


def test_broken_exif_is_no_reason_to_lose_a_picture():
    data = encoded(upright_corners(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01")
    assert load_image(data).size == (60, 40)
    assert image_size(data) == Size(40, 60)


# --- what is no picture


BROKEN = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"hello, this is no picture", "not a picture of a known format; convert it to one of JPEG, PNG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
    "an unlisted format": (encoded(Image.new("RGB", (8, 8)), "ICO"), "not a picture of a known format"),
    "a cut JPEG": (encoded(Image.fromarray(noise(200, 200)), "JPEG")[:-3000], "cut off or damaged .*truncated"),
    "a cut PNG": (encoded(Image.fromarray(noise(200, 200)), "PNG")[:-3000], "cut off or damaged .*truncated"),
    "a PNG without pixels": (png_of_size(8, 8), "cut off or damaged"),
    "a flipped bit": (
        encoded(Image.fromarray(noise()), "PNG").replace(b"IDAT", b"IDAT\x01"),
        "cut off or damaged|header",
    ),
    "a cut header": (encoded(Image.fromarray(noise()), "JPEG")[:30], "not a picture|header is broken|cut off"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(what, tmp_path):
    data, wrong = BROKEN[what]
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"holiday\.jpg: .*({wrong})"):
        load_image(path)


@pytest.mark.parametrize("what", ["zero bytes", "text", "SVG", "a cut header"])
def test_the_size_of_a_broken_file_is_refused_in_the_same_words(what, tmp_path):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(BROKEN[what][0])
    said = []
    for read in (load_image, image_size):
        with pytest.raises(DataError) as raised:
            read(path)
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jpg: there is no such file"):
        image_size(tmp_path / "nowhere.jpg")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(DataError, match="not a regular file; pass the path of one image file"):
        load_image(tmp_path)


def test_base64_without_its_data_uri_head_is_a_bad_path_and_is_not_printed_whole():
    with pytest.raises(DataError, match="not a usable path") as raised:
        load_image("iVBORw0KGgo" * 1000)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("uri", "wrong"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@", "its base64 is broken"),
        ("data:image/png;base64,", "zero bytes"),
        ("data:text/plain,hello", "not a picture of a known format"),
    ],
)
def test_a_broken_data_uri_says_so(uri, wrong):
    with pytest.raises(DataError, match=rf"image (data: URI|bytes): .*{wrong}"):
        load_image(uri)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], np.zeros((4, 4, 3), np.uint8)])
def test_what_is_no_source_at_all_is_told_what_is(source):
    with pytest.raises(DataError, match="pass a path, bytes, a data: URI or a PIL image"):
        load_image(source)


# --- too large


def test_too_many_pixels_are_refused_from_the_header_alone():
    with pytest.raises(DataError, match=r"image bytes: too large, 8001x8000 is 64,008,000 pixels; .* or raise max_px"):
        image_size(png_of_size(8001, 8000))


@pytest.mark.parametrize("side", [9500, 14000, 30000])
@pytest.mark.parametrize("filter", ["error", "ignore"])
def test_pils_own_limits_and_warning_filters_do_not_change_that(side, filter):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(filter)
        with pytest.raises(DataError, match="too large"):
            load_image(png_of_size(side, side))
    assert caught == []


def test_the_limit_can_be_moved_both_ways():
    data = encoded(Image.new("RGB", (20, 10)), "PNG")
    assert load_image(data, ImageReading(max_px=200)).size == (20, 10)
    with pytest.raises(DataError, match="too large, 10x20 is 200 pixels; make it smaller than 199 pixels"):
        load_image(data, ImageReading(max_px=199))
    with pytest.raises(DataError, match="PIL image: too large"):
        load_image(Image.new("RGB", (20, 10)), ImageReading(max_px=199))


# --- good manners


def test_no_file_stays_open_and_no_global_of_pil_moves(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(noise()).save(path)
    cut = tmp_path / "cut.png"
    cut.write_bytes(path.read_bytes()[:200])
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        load_image(path), image_size(path)
        with pytest.raises(DataError):
            load_image(cut)
        gc.collect()
    assert caught == []
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
