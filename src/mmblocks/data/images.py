"""Pictures from files, bytes, data: URIs and PIL: RGB and whole, or a `DataError` naming the file."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from mmblocks.data.files import Slice, bytes_or_file, name_of
from mmblocks.errors import DataError
from mmblocks.shapes import Size

ImageSource = str | os.PathLike[str] | bytes | Slice | Image.Image
T = TypeVar("T")
Alpha = Literal["drop", "white"]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PX = 64_000_000

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
_ONE_AT_A_TIME = threading.Lock()


def load_image(source: ImageSource, *, max_px: float = MAX_PX, alpha: Alpha = "drop", exif: bool = True) -> Image.Image:
    """A picture as RGB, fully decoded, with no file and no metadata left on it.

    `max_px` bounds height x width before anything is decoded. `alpha`: "drop" keeps the colours below transparent
    pixels, as LLaVA does, and they can be surprising; "white" lays the picture on white. `exif` turns it upright (LLaVA
    does not; TIFF is turned in any case, by PIL). Of animations the first frame; of a PIL image the current one.
    """
    if alpha not in get_args(Alpha):
        raise DataError(f"alpha is {alpha!r}; write one of {', '.join(get_args(Alpha))}.")
    name = name_of(source, "image")
    with _opened(source, max_px) as (image, orientation), _broken_pixels_named(name):
        image.load()
        rgb = _rgb(image, alpha, name)
        upright = rgb.transpose(_TURNS[orientation]) if exif and orientation in _TURNS else rgb
    upright.info = {}
    return upright


def image_size(source: ImageSource, *, max_px: float = MAX_PX, exif: bool = True) -> Size:
    """The size in pixels that `load_image` will give, from the header alone."""
    with _opened(source, max_px) as (image, orientation):
        swaps = exif and orientation in _SWAPS_SIDES
        return Size(image.width, image.height) if swaps else Size(image.height, image.width)


class _Opened(NamedTuple):
    image: Image.Image
    orientation: int  # EXIF's: 1 is upright


@contextmanager
def _opened(source: ImageSource, max_px: float) -> Iterator[_Opened]:
    """The picture with its header read and its size checked; what was opened here is closed here."""
    name = name_of(source, "image")
    if isinstance(source, Image.Image):
        _check_size(source, max_px, name)
        yield _Opened(source, _quietly(lambda: _orientation(source), name, max_px))
        return
    if not isinstance(source, str | os.PathLike | bytes | Slice):
        raise DataError(f"{name}: cannot be read as a picture; pass a path, bytes, a data: URI or a PIL image.")
    content = source if isinstance(source, Slice) else bytes_or_file(source, "image")
    with _file(content, name) as file:
        image, orientation = _quietly(lambda: _header(file), name, max_px)
        with image:
            _check_size(image, max_px, name)
            yield _Opened(image, orientation)


def _file(content: bytes | Path | Slice, name: str) -> IO[bytes]:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    try:
        return content.open("rb")
    except OSError as cause:
        raise DataError(f"{name}: cannot be opened ({cause}); check its permissions.") from cause


def _header(file: IO[bytes]) -> _Opened:
    image = Image.open(file, formats=FORMATS)
    return _Opened(image, _orientation(image))


def _quietly(read: Callable[[], T], name: str, max_px: float) -> T:
    """`read()` without PIL's warnings: about sizes that are judged here, and about broken metadata.

    Warning filters belong to the whole process: hence the lock, and hence only around the header.
    """
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Image.DecompressionBombError as cause:
        raise DataError(f"{name}: too large ({cause}); {_size_cure(max_px)}") from cause
    except Image.UnidentifiedImageError as cause:
        raise DataError(
            f"{name}: not a picture of a known format; convert it to one of {', '.join(FORMATS)}."
        ) from cause
    except Exception as cause:  # whatever a parser makes of foreign bytes: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: its header is broken ({cause}); fetch the file again or drop the record.") from cause


@contextmanager
def _broken_pixels_named(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (
        Exception
    ) as cause:  # a decoder's: OSError for cut files, but also ValueError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: cut off or damaged ({cause}); fetch the file again or drop the record.") from cause


def _check_size(image: Image.Image, max_px: float, name: str) -> None:
    size = Size(image.height, image.width)
    if size.area < 1:
        raise DataError(f"{name}: {size} pixels; a picture needs at least one.")
    if size.area > max_px:
        raise DataError(f"{name}: too large, {size} is {size.area:,} pixels; {_size_cure(max_px)}")


def _size_cure(max_px: float) -> str:
    return f"make it smaller than {max_px:,.0f} pixels, or raise max_px if you trust its origin."


def _orientation(image: Image.Image) -> int:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # PIL turns TIFF itself when it decodes, and tells the turned size before
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    if "exif" not in image.info and (late := _exif_after_the_pixels(image)):
        exif = Image.Exif()
        exif.load(late)
        return exif.get(ExifTags.Base.Orientation, 1)
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PngImageFile.getexif would decode the pixels


def _exif_after_the_pixels(png: Image.Image) -> bytes | None:
    """The eXIf chunk of a PNG whose header had none; it may stand behind the pixels."""
    file = getattr(png, "fp", None)
    if file is None:
        return None
    back = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, os.SEEK_CUR)
    finally:
        file.seek(back)
    return None


def _rgb(image: Image.Image, alpha: Alpha, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bits(image, alpha)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name}: its pixels are 32-bit numbers (mode {image.mode}) and nothing says which one is white; "
            "scale them to 8 bits and save the picture again."
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if alpha == "drop":
        return rgba.convert("RGB")
    sheet = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(sheet, rgba).convert("RGB")


def _from_16_bits(image: Image.Image, alpha: Alpha) -> Image.Image:
    """Grey of 0 to 65535 as 0 to 255, rounded; PIL's own convert clips everything above 255 to white."""
    raw = np.asarray(image).astype(np.uint32)
    grey = ((raw + 128) // 257).astype(np.uint8)
    if alpha == "white" and isinstance(clear := image.info.get("transparency"), int):
        grey[raw == clear] = 255
    return Image.fromarray(grey).convert("RGB")
