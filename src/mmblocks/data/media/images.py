"""Images from files, bytes, data: URIs and PIL: RGB and whole, or a `DataError` naming the file."""

import io
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple, TypeVar

from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from mmblocks.data.media.files import FileSlice, describe_source, resolve_source
from mmblocks.data.media.rgb import HeaderFacts, to_rgb, warn_once
from mmblocks.errors import DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.shapes import Size

ImageSource = str | os.PathLike[str] | bytes | FileSlice | Image.Image
T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_SHRINKS = (2, 4, 8)  # what a JPEG's decoder can leave out of each side
_ONE_AT_A_TIME = threading.Lock()


def load_image(
    source: ImageSource, images: ImageReading = DEFAULT_READING, *, shown: Size | None = None
) -> Image.Image:
    """An image as RGB, fully decoded, with no file and no metadata left on it, read as `images` says.

    TIFF is turned upright in any case, by PIL. Of animations the first frame; of a PIL image the current one.
    shown: the largest size at which it is shown; a JPEG may then be decoded at fewer pixels, but not at fewer than these.
    """
    name = describe_source(source, "image")
    with _open_image(source, images.max_px) as (image, orientation), _name_pixel_errors(name):
        if shown is not None:
            _reduce_jpeg(image, shown[::-1] if images.exif and orientation in _SWAPS_SIDES else shown)
        if isinstance(image, PngImagePlugin.PngImageFile):
            for kind, content, checksum in _read_png_chunks(image, b"IDAT"):
                if len(checksum) == 4 and zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
                    raise ValueError("the check sum of its pixels is wrong")  # PIL does not check them
        header = HeaderFacts.from_image(image, was_opened_here=image is not source)
        _decode_pixels(image)
        rgb = to_rgb(image, header, images, name)
        upright = rgb.transpose(_TURNS[orientation]) if images.exif and orientation in _TURNS else rgb
    upright.info = {}
    return upright


def read_image_size(source: ImageSource, images: ImageReading = DEFAULT_READING) -> Size:
    """The size in pixels that `load_image` will give, from the header alone."""
    with _open_image(source, images.max_px) as (image, orientation):
        swaps = images.exif and orientation in _SWAPS_SIDES
        return Size(image.width, image.height) if swaps else Size(image.height, image.width)


def read_image_content(image: Image.Image) -> tuple[str | bytes, ...]:
    """Everything in a PIL image that decides how it is read. Raises `DataError` where its file is damaged."""
    with _name_pixel_errors(describe_source(image, "image")):
        orientation = _read_without_warnings(lambda: _read_orientation(image), "PIL image", DEFAULT_READING.max_px)
        _decode_pixels(image)
        facts = (image.mode, image.size, image.info.get("transparency"), orientation, HeaderFacts.from_image(image))
        palette = (image.palette.mode, image.palette.tobytes()) if image.palette else ("", b"")
        return repr(facts), *palette, image.tobytes()


class _OpenImage(NamedTuple):
    image: Image.Image
    orientation: int  # EXIF's: 1 is upright


@contextmanager
def _open_image(source: ImageSource, max_px: int) -> Iterator[_OpenImage]:
    """The image with its header read and its size checked; what was opened here is closed here."""
    name = describe_source(source, "image")
    if isinstance(source, Image.Image):
        _check_size(source, max_px, name)
        yield _OpenImage(source, _read_without_warnings(lambda: _read_orientation(source), name, max_px))
        return
    if not isinstance(source, str | os.PathLike | bytes | FileSlice):
        raise DataError(f"{name}: cannot be read as an image; pass a path, bytes, a data: URI or a PIL image.")
    content = source if isinstance(source, FileSlice) else resolve_source(source, "image")
    try:
        file = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    except OSError as cause:
        raise DataError(f"{name}: cannot be opened ({cause}); check its permissions.") from cause

    def read_header() -> _OpenImage:
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError:
            file.seek(0)
            is_jpeg = file.read(3) == b"\xff\xd8\xff"
            most_px = max_px * _SHRINKS[-1] ** 2 if is_jpeg else max_px  # a JPEG may be shrunk afterwards
            if most_px <= 2 * (Image.MAX_IMAGE_PIXELS or 0):
                raise
            with _set_pil_limit(most_px):
                image = Image.open(file, formats=FORMATS)
        return _OpenImage(image, _read_orientation(image))

    with file:
        image, orientation = _read_without_warnings(read_header, name, max_px)
        with image:
            _shrink_jpeg(image, file, max_px, name)
            _check_size(image, max_px, name)
            yield _OpenImage(image, orientation)


def _read_without_warnings(read: Callable[[], T], name: str, max_px: int) -> T:
    """`read()` without PIL's warnings: about sizes that are judged here, and about broken metadata.

    Warning filters belong to the whole process: hence the lock, and hence only around the header.
    """
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Image.DecompressionBombError as cause:
        raise DataError(f"{name}: too large ({cause}); {_format_size_cure(max_px)}") from cause
    except Image.UnidentifiedImageError as cause:
        raise DataError(
            f"{name}: not an image of a known format; convert it to one of {', '.join(FORMATS)}."
        ) from cause
    except Exception as cause:  # whatever a parser makes of foreign bytes: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: its header is broken ({cause}); fetch the file again or drop the record.") from cause


@contextmanager
def _name_pixel_errors(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as cause:  # a decoder's: OSError for cut files, also ValueError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: cut off or damaged ({cause}); fetch the file again or drop the record.") from cause


# Size -----------------------------------------------------------------------------------------------------------------


def _check_size(image: Image.Image, max_px: int, name: str) -> None:
    size = Size(image.height, image.width)
    if size.area < 1:
        raise DataError(f"{name}: {size} pixels; an image needs at least one.")
    if size.area > max_px:
        raise DataError(f"{name}: too large, {size} is {size.area:,} pixels; {_format_size_cure(max_px, size.area)}")


def _format_size_cure(max_px: int, wanted: int | str = "PIXELS") -> str:
    return (
        f"make it smaller than {max_px:,} pixels, or raise max_px if you trust its origin ({_format_max_px(wanted)})."
    )


def _format_max_px(wanted: int | str) -> str:
    return f"model.images.max_px={wanted} in a recipe, --max-px {wanted} of `mmblocks chat`"


def _shrink_jpeg(image: Image.Image, file: IO[bytes], max_px: int, name: str) -> None:
    """Have a JPEG that is larger than `max_px` decoded smaller, in place, where that makes it small enough.

    Never a smaller one: the decoder shrinks in another way than views are resized, and pixels are to be the original's.
    What is left is a quarter of `max_px` or more, which views of usual sizes do not show in full anyway.
    """
    whole = Size(image.height, image.width)
    if whole.area <= max_px or not isinstance(image, JpegImagePlugin.JpegImageFile) or not _is_sequential_jpeg(file):
        return
    for times in _SHRINKS:
        if -(-whole.width // times) * -(-whole.height // times) <= max_px:
            image.draft(None, (max(1, whole.width // times), max(1, whole.height // times)))
            shrunk = f"{whole} is {whole.area:,} pixels, so it is read as {image.height}x{image.width}"
            warn_once(name, f"{shrunk}; raise max_px to read it whole ({_format_max_px(whole.area)}).")
            return


def _reduce_jpeg(image: Image.Image, shown: Sequence[int]) -> None:
    """Have a JPEG decoded in place at the smallest share of its sides that is not smaller than `shown` (height, width)."""
    is_whole_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile) and not image.decoderconfig
    if is_whole_jpeg and image.height >= 2 * shown[0] and image.width >= 2 * shown[1]:
        image.draft(None, (shown[1], shown[0]))


def _is_sequential_jpeg(jpeg: IO[bytes]) -> bool:
    """Whether a JPEG is sequential and in one scan. Of others the decoder holds all pixels, shrunk or not."""
    back, components = jpeg.tell(), b""
    jpeg.seek(2)
    try:
        while len(head := jpeg.read(4)) == 4 and head[0] == 0xFF:
            segment = jpeg.read(int.from_bytes(head[2:], "big") - 2)
            if head[1] in (0xC0, 0xC1):  # a sequential frame
                components = segment[5:6]
            if head[1] == 0xDA:  # the first scan
                return segment[:1] == components != b""
        return False
    finally:
        jpeg.seek(back)


@contextmanager
def _set_pil_limit(most_px: int) -> Iterator[None]:
    """PIL's own limit as high as ours, for a moment: it belongs to the whole process. The caller holds the lock."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (most_px + 1) // 2  # PIL refuses above twice its limit
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode_pixels(image: Image.Image) -> None:
    """Decode the pixels, whose number is known to be allowed. PIL checks its own limit once more, of TIFF."""
    area, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is None or area <= limit:
        image.load()
        return
    with _ONE_AT_A_TIME, _set_pil_limit(2 * area):
        image.load()


# EXIF -----------------------------------------------------------------------------------------------------------------


def _read_orientation(image: Image.Image) -> int:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # PIL turns TIFF itself when it decodes, and gives the turned size before
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    late = () if "exif" in image.info else _read_png_chunks(image, b"eXIf")  # it may stand behind the pixels
    if (chunk := next(iter(late), None)) is not None and chunk[1]:
        exif = Image.Exif()
        exif.load(chunk[1])
        return exif.get(ExifTags.Base.Orientation, 1)
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PngImageFile.getexif would decode the pixels


def _read_png_chunks(png: PngImagePlugin.PngImageFile, wanted: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, content, check sum) of the chunks of one kind, wherever they stand; the file is left where it was."""
    file = png.fp
    if file is None:
        return
    back = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == wanted:
                yield wanted, file.read(length), file.read(4)
            else:
                file.seek(length + 4, os.SEEK_CUR)
    finally:
        file.seek(back)
