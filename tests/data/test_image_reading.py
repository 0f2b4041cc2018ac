"""What is seen of images beyond 8-bit RGB: transparency as viewers show it, deep grey in a range, large ones as allowed."""

import io
import logging
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from mmblocks.data.media.images import load_image, read_image_size
from mmblocks.errors import ConfigError, DataError
from mmblocks.image_reading import ImageReading
from mmblocks.shapes import Size

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
DROP, STRETCH = ImageReading(alpha="drop"), ImageReading(grey="stretch")


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colours(source, images=ImageReading()):  # noqa: B008  # frozen
    return [tuple(pixel) for pixel in np.asarray(load_image(source, images)).reshape(-1, 3).tolist()]


def greys(source, images=ImageReading()):  # noqa: B008  # frozen
    return np.asarray(load_image(source, images))[..., 0].reshape(-1).tolist()


def drawing():
    """Black strokes, and a half transparent red one, on a transparent sheet whose hidden colour is black."""
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (5, 5, 30, 10))
    image.paste((200, 30, 60, 128), (5, 15, 30, 25))
    return image


def on_white(image):
    """As viewers show it, by PIL's own composition."""
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def palette_and_alpha():
    image = drawing().convert("RGB").quantize(16)
    image.putalpha(drawing().getchannel("A"))
    assert image.mode == "PA"
    return image


def png(width, height, depth, kind, row, *chunks):
    """A PNG of one row of packed samples (PNG 1.2, chapter 4): whatever depth and kind of colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(samples, *, photometric=1, bits=None, extra=None, kind=1, order="<", width=None):
    """A TIFF 6.0 of one strip. kind: SampleFormat, 1 unsigned, 2 signed, 3 float; extra: ExtraSamples, 1 associated."""
    height, across, *more = samples.shape
    per_pixel = more[0] if more else 1
    bits = bits or samples.dtype.itemsize * 8
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    tags = [(256, 4, [width or across]), (257, 4, [height]), (258, 3, [bits] * per_pixel), (259, 3, [1])]
    tags += [(262, 3, [photometric]), (273, 4, [8]), (277, 3, [per_pixel]), (278, 4, [height]), (279, 4, [len(data)])]
    tags += [] if extra is None else [(338, 3, [extra])]
    tags += [(339, 3, [kind] * per_pixel)]
    entries, beside, at = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, form, values in tags:
        packed = struct.pack(order + "HI"[form == 4] * len(values), *values)
        if len(packed) > 4:
            beside, packed = beside + packed, struct.pack(order + "I", at + len(beside))
        entries += struct.pack(order + "HHI", tag, form, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4) + beside


# --- transparency

LOSSLESS = {"WEBP": {"lossless": True, "exact": True}}
TRANSPARENT = {
    "RGBA": drawing(),
    "LA": drawing().convert("LA"),
    "P": drawing().quantize(16),
    "PA": palette_and_alpha(),
    "RGBa": drawing().convert("RGBa"),
}


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_a_transparent_image_in_memory_is_seen_on_white(mode):
    assert np.array_equal(load_image(TRANSPARENT[mode]), on_white(TRANSPARENT[mode]))
    assert np.asarray(load_image(TRANSPARENT[mode]))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_dropped_transparency_is_what_the_original_computes(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = np.asarray(TRANSPARENT[mode].convert("RGB"))  # as LLaVA opens images
    assert np.array_equal(load_image(TRANSPARENT[mode], DROP), original)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_file_is_seen_on_white(mode, format):
    image = TRANSPARENT[mode]
    saved = image.convert("RGBA") if (mode, format) in {("P", "TIFF"), ("LA", "WEBP"), ("P", "WEBP")} else image
    assert np.array_equal(load_image(encoded(saved, format, **LOSSLESS.get(format, {}))), on_white(image))


def test_a_transparent_gif_is_seen_on_white():
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    data = encoded(image, "GIF", transparency=0, save_all=True, append_images=[image.copy()])
    assert colours(data)[:2] == [WHITE, (10, 20, 30)]
    assert colours(data, DROP)[:2] == [BLACK, (10, 20, 30)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_colours_are_multiplied_by_their_alpha_is_seen_on_white(order):
    straight = np.asarray(drawing()).astype(int)
    multiplied = np.dstack([np.round(straight[..., :3] * straight[..., 3:] / 255), straight[..., 3:]]).astype(np.uint8)
    shown = np.asarray(load_image(tiff(multiplied, photometric=2, extra=1, order=order))).astype(int)
    assert np.abs(shown - on_white(drawing())).max() <= 2  # rounded once more when they are multiplied


def test_multiplied_grey_in_memory_is_seen_on_white():
    image = Image.frombytes("La", (3, 1), bytes([0, 0, 64, 128, 200, 255]))
    assert greys(image) == [255, 191, 200]  # 64 / 128 * 255 = 127.5, half of it on white


def test_a_fourth_channel_that_is_no_alpha_hides_nothing():
    samples = np.asarray(drawing())
    assert np.array_equal(load_image(tiff(samples, photometric=2, extra=0)), samples[..., :3])


def test_an_opaque_alpha_changes_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    opaque = Image.fromarray(noise).convert("RGBA")
    assert np.array_equal(load_image(opaque), noise)
    assert np.array_equal(load_image(encoded(opaque, "PNG")), noise)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new("RGB", (2, 1), BLACK).convert(mode)
    image.putpixel((1, 0), 1 if mode == "P" else Image.new("RGB", (1, 1), "#555").convert(mode).getpixel((0, 0)) or 255)
    data = encoded(image, "PNG", transparency=image.getpixel((0, 0)))
    assert colours(data)[0] == WHITE
    assert colours(data)[1] == colours(image)[1]
    assert colours(data, DROP)[0] == BLACK


def key(*numbers):
    return (b"tRNS", struct.pack(f">{len(numbers)}H", *numbers))


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (png(8, 1, 1, 0, b"\x0f", key(1)), [0] * 4 + [255] * 4),
        (png(8, 1, 1, 0, b"\x0f", key(0)), [255] * 8),
        (png(4, 1, 2, 0, b"\x1b", key(1)), [0, 255, 170, 255]),
        (png(4, 1, 4, 0, b"\x05\xaf", key(10)), [0, 85, 255, 255]),
        (png(3, 1, 8, 0, b"\x00\x0a\xc8", key(10)), [0, 255, 200]),
        (png(3, 1, 16, 0, struct.pack(">3H", 0, 257, 50000), key(50000)), [0, 1, 255]),
        (png(2, 1, 16, 2, struct.pack(">6H", 0, 0, 0, 0x8000, 0x8000, 0x1234), key(0x8000, 0x8000, 0x1234)), [0, 255]),
        (png(2, 1, 16, 4, struct.pack(">4H", 0, 0, 0, 65535)), [255, 0]),
        (png(2, 1, 16, 6, struct.pack(">8H", 0, 0, 0, 0, 0, 0, 0, 65535)), [255, 0]),
    ],
    ids=["1 bit", "1 bit black", "2 bits", "4 bits", "8 bits", "16 bits", "48-bit colour", "grey and alpha", "64 bits"],
)
def test_what_a_png_of_any_depth_calls_transparent_is_white(data, shown):
    assert greys(data) == shown  # PNG 1.2, 4.2.1.3: a sample equal to the key, in the file's own depth


def test_a_transparent_image_is_turned_upright_too():
    tags = Image.Exif()
    tags[0x0112] = 6
    data = encoded(drawing(), "PNG", exif=tags)
    assert np.array_equal(load_image(data), np.rot90(on_white(drawing()), -1))
    assert read_image_size(data) == Size(40, 30)


def test_a_palette_with_many_transparencies_gives_no_warning():
    data = encoded(Image.new("RGB", (4, 4)).quantize(4), "PNG", transparency=bytes(range(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colours(data)[0] == WHITE
        assert colours(data, DROP)[0] == BLACK


# --- grey of more than 8 bits

RAMP = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
CT = np.array([[-1000, -200, 40, 400, 3000]], dtype=np.int16)


@pytest.mark.parametrize(
    "image", [encoded(Image.fromarray(RAMP), "PNG"), tiff(RAMP), tiff(RAMP, order=">"), Image.fromarray(RAMP)]
)
def test_16_bit_grey_is_scaled_and_not_clipped(image):
    assert greys(image) == [0, 0, 1, 1, 128, 254, 255, 255]


def windowed(values, low, high):
    """DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT, for an output of 0 to 255."""
    centre, width = (low + high) / 2, high - low
    shown = ((values.astype(float) - centre) / width + 0.5) * 255
    shown[values <= centre - width / 2], shown[values > centre + width / 2] = 0, 255
    return np.floor(shown + 0.5).astype(int).reshape(-1).tolist()


@pytest.mark.parametrize(
    ("data", "values", "window"),
    [
        (tiff(RAMP), RAMP, (0, 1023)),
        (encoded(Image.fromarray(RAMP), "PNG"), RAMP, (200, 40000)),
        (tiff(CT, kind=2), CT, (-160, 240)),
        (tiff(CT.astype(np.int32) * 1000, kind=2), CT.astype(np.int32) * 1000, (-100000.5, 300000)),
        (tiff(CT.astype(np.float32) / 7, kind=3), CT.astype(np.float32) / 7, (0.5, 77.25)),
        (Image.fromarray(RAMP.astype(np.int32)), RAMP, (0, 4095)),
    ],
    ids=["TIFF", "PNG", "CT", "32 bits", "floats", "mode I in memory"],
)
def test_a_window_is_applied_as_dicom_does(data, values, window):
    assert greys(data, ImageReading(grey=window)) == windowed(values, *window)


def test_the_window_of_all_16_bits_is_the_full_range():
    every = Image.fromarray(np.arange(2**16, dtype=np.uint16).reshape(256, 256))
    assert greys(every, ImageReading(grey=(0, 65535))) == greys(every)


def test_the_window_of_a_byte_is_what_the_original_computes():
    image = Image.fromarray(RAMP)
    assert np.array_equal(load_image(image, ImageReading(grey=(0, 255))), image.convert("RGB"))  # videos above 255


def test_stretch_shows_an_image_from_its_least_to_its_greatest():
    ten_bits = np.array([[100, 300, 700, 1023]], np.uint16)
    assert greys(tiff(ten_bits), STRETCH) == windowed(ten_bits, 100, 1023)
    assert greys(tiff(CT, kind=2), STRETCH) == windowed(CT, -1000, 3000)


def test_what_is_no_number_is_black_and_does_not_stretch():
    data = tiff(np.array([[np.nan, 0.25, np.inf, -np.inf, 1.0]], np.float32), kind=3)
    assert greys(data, STRETCH) == [0, 0, 255, 0, 255]
    assert greys(data, ImageReading(grey=(0, 1))) == [0, 64, 255, 0, 255]
    assert greys(tiff(np.full((1, 2), np.nan, np.float32), kind=3), STRETCH) == [0, 0]


def test_a_transparent_number_is_white_and_does_not_stretch():
    data = png(4, 1, 16, 0, struct.pack(">4H", 100, 300, 500, 65535), key(65535))
    assert greys(data, STRETCH) == [0, 128, 255, 255]
    assert greys(data, ImageReading(grey="stretch", alpha="drop")) == [0, 1, 2, 255]


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_32_bit_grey_is_refused_in_full_with_the_cure(dtype, mode):
    with pytest.raises(
        DataError, match=rf"mode {mode}\) and nothing says which one is white; write grey=stretch .*grey=\[LOW"
    ):
        load_image(Image.fromarray(np.ones((4, 4), dtype)))


def test_8_bit_grey_is_as_it_is():
    image = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert greys(image, STRETCH) == greys(image, ImageReading(grey=(0, 1023))) == [0, 100, 255]


def test_deep_grey_whose_zero_is_white_is_turned_round_as_8_bit_grey_is():
    eight = np.array([[0, 100, 255]], np.uint8)
    assert greys(tiff(eight, photometric=0)) == [255, 155, 0]  # by PIL
    assert greys(tiff(eight.astype(np.uint16) * 257, photometric=0)) == [255, 155, 0]
    assert greys(tiff(eight.astype(np.float32), photometric=0, kind=3), ImageReading(grey=(0, 255))) == [255, 155, 0]


def test_the_full_range_of_12_bits_is_that_of_12_bits():
    packed = np.frombuffer(bytes.fromhex("000800fff400"), np.uint8).reshape(1, 6)  # 0, 2048, 4095, 1024
    assert greys(tiff(packed, bits=12, width=4)) == [0, 128, 255, 64]


@pytest.mark.parametrize(("most", "warns"), [(1023, True), (4095, True), (4096, False), (65535, False)])
def test_a_narrow_range_is_warned_of_once_with_file_and_range(most, warns, tmp_path, caplog):
    path = tmp_path / f"scan{most}.png"
    Image.fromarray(np.array([[0, most]], np.uint16)).save(path)
    with caplog.at_level(logging.WARNING, "mmblocks"):
        load_image(path), load_image(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: its grey is 0 to {most} of 0 to 65535, so little of it is seen; write grey=stretch for each image's "
        "own range, or grey=[LOW,HIGH] for a fixed one (model.images.grey in a recipe, --grey of `mmblocks chat`)."
    ] * warns


def test_a_range_that_was_chosen_is_not_warned_of(tmp_path, caplog):
    path = tmp_path / "scan.png"
    Image.fromarray(np.array([[0, 700]], np.uint16)).save(path)
    load_image(path, STRETCH), load_image(path, ImageReading(grey=(0, 1023)))
    assert caplog.records == []


def test_16_bit_colours_of_a_narrow_range_are_warned_of(tmp_path, caplog):
    path = tmp_path / "scan.tif"
    path.write_bytes(tiff(np.array([[[0, 500, 1023]]], np.uint16), photometric=2))
    assert colours(path) == [(0, 1, 3)]
    assert "its 16-bit colours are 0 to 3 of 0 to 255" in caplog.text


# --- size


def photo(width=403, height=301):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.dstack([x % 256, y % 256, (x + y) % 256]).astype(np.uint8))


@pytest.fixture
def small_limit_of_pil(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}], ids=["plain", "compressed"])
def test_max_px_is_the_only_limit(format, options, small_limit_of_pil):
    data = encoded(photo(40, 30), format, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data, ImageReading(max_px=1200)).size == (40, 30)
        assert read_image_size(data, ImageReading(max_px=1200)) == Size(30, 40)
        if format != "JPEG":
            with pytest.raises(DataError, match="too large, 30x40 is 1,200 pixels"):
                load_image(data, ImageReading(max_px=1199))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pils_limit_is_back_after_many_threads_and_broken_images(small_limit_of_pil):
    data = encoded(photo(40, 30), "TIFF")
    sizes = []

    def read():
        with pytest.raises(DataError):
            load_image(data[:60])
        sizes.append(load_image(data).size)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(40, 30)] * 4
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_the_error_names_the_setting_of_a_recipe_and_of_the_command():
    plan = png(8000, 9000, 8, 0, b"")
    cure = r"raise max_px if you trust its origin \(model.images.max_px=72000000 in a recipe, --max-px 72000000 of `mmblocks chat`\)"
    with pytest.raises(DataError, match=rf"too large, 9000x8000 is 72,000,000 pixels; .*{cure}"):
        read_image_size(plan)
    assert read_image_size(plan, ImageReading(max_px=72_000_000)) == Size(9000, 8000)
    assert read_image_size(png(30000, 30000, 8, 0, b""), ImageReading(max_px=10**9)) == Size(30000, 30000)


@pytest.mark.parametrize(("max_px", "times"), [(301 * 403, 1), (301 * 403 - 1, 2), (30501, 4), (1938, 8)])
@pytest.mark.parametrize("format", ["JPEG", "MPO"])
def test_a_jpeg_beyond_the_limit_is_decoded_smaller_and_planned_so(format, max_px, times):
    options = {"save_all": True, "append_images": [photo()]} if format == "MPO" else {}
    data = encoded(photo(), format, **options)
    loaded, size = load_image(data, ImageReading(max_px=max_px)), read_image_size(data, ImageReading(max_px=max_px))
    assert size == Size(loaded.height, loaded.width) == Size(-(-301 // times), -(-403 // times))
    averaged = np.asarray(photo().resize(loaded.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(loaded) - averaged).mean() < 6  # a shrunk photo, not a part of it


def test_a_jpeg_within_the_limit_is_decoded_as_pil_decodes_it():
    data = encoded(photo(), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(load_image(data, ImageReading(max_px=301 * 403)), image.convert("RGB"))


def test_shrinking_is_told_once(tmp_path, caplog):
    path = tmp_path / "map.jpg"
    photo().save(path)
    read_image_size(path, ImageReading(max_px=100_000)), load_image(path, ImageReading(max_px=100_000))
    (record,) = caplog.records
    assert (
        f"{path}: 301x403 is 121,303 pixels, so it is read as 151x202; raise max_px to read it whole" in record.message
    )


def in_several_scans(data):
    """The header of a JPEG that says that its first scan holds one of three components."""
    at = data.index(b"\xff\xda")
    return data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[at + 14 :]


@pytest.mark.parametrize(
    "data", [encoded(photo(), "JPEG", progressive=True), in_several_scans(encoded(photo(), "JPEG"))]
)
def test_a_jpeg_that_is_held_whole_while_it_is_decoded_stays_refused(data):
    assert read_image_size(data) == Size(301, 403)
    with pytest.raises(DataError, match="too large, 301x403"):
        read_image_size(data, ImageReading(max_px=100_000))


def test_a_turned_jpeg_is_shrunk_and_turned():
    tags = Image.Exif()
    tags[0x0112] = 6
    data, images = encoded(photo(), "JPEG", exif=tags), ImageReading(max_px=100_000)
    assert read_image_size(data, images) == Size(202, 151)
    assert load_image(data, images).size == (151, 202)


def test_an_opened_pil_image_is_never_shrunk():
    with Image.open(io.BytesIO(encoded(photo(), "JPEG"))) as image:
        with pytest.raises(DataError, match="PIL image: too large"):
            load_image(image, ImageReading(max_px=100_000))
        assert load_image(image).size == image.size == (403, 301)


# --- settings


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"alpha": "black"}, "images.alpha: alpha='black' is not one of white, drop."),
        ({"grey": "narrow"}, "images.grey: grey='narrow' is not one of full, stretch"),
        ({"grey": [1023, 0]}, r"images.grey: grey=\[1023, 0\] is no range. Write \[low, high\] with low below high"),
        ({"grey": [5, 5]}, "is no range"),
        ({"grey": [0, float("nan")]}, "is no range"),
        ({"grey": [1, 2, 3]}, r"grey=\[1, 2, 3\] is not"),
        ({"max_px": 0}, "max_px=0 lets no image pass"),
        ({"max_px": "many"}, "max_px='many' is not int"),
        ({"alfa": "drop"}, "images.alfa is not a setting. Did you mean 'alpha'"),
        ("drop", "images: 'drop' holds no settings. Write images.alpha=..., or a mapping of alpha, grey, max_px, exif"),
    ],
)
def test_settings_that_mean_nothing_are_named(raw, fault):
    with pytest.raises(ConfigError, match=fault):
        ImageReading.from_dict(raw)


def test_settings_come_back_from_json():
    images = ImageReading(alpha="drop", grey=(0, 1023), max_px=7, exif=False, resize="torch", decode="reduced")
    assert images.to_dict() == {
        "alpha": "drop",
        "grey": [0, 1023],
        "max_px": 7,
        "exif": False,
        "resize": "torch",
        "decode": "reduced",
    }
    assert ImageReading.from_dict(images.to_dict()) == images
    assert ImageReading().with_changes({"grey": [0, 1023]}) == ImageReading(grey=(0, 1023))
