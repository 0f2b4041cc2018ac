"""Pixels of any mode as 8-bit RGB: what is transparent, and which numbers of a deep grey are black and white."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmblocks.errors import DataError
from mmblocks.image_reading import ImageReading

log = logging.getLogger(__name__)

DEEP_GREY = ("I", "F")
FEW = 16
"""A deep grey that uses less than one part in so many of its range is warned of."""
_KEY_STEPS = {"L;2": 85, "L;4": 17}  # PIL spreads grey of 2 and 4 bits over 0 to 255, but not the transparent one
_WHITE_IS_ZERO, _BITS, _PHOTOMETRIC = 0, 258, 262  # TIFF
_warned: set[str] = set()


class HeaderFacts(NamedTuple):
    """What only the header says: PIL's raw mode, the bits of a sample, and whether 0 is white.

    raw_mode: empty for a PIL image of somebody else, which has none any more when it is decoded.
    white_is_zero: of deep grey; 8-bit grey is turned round by PIL.
    """

    raw_mode: str
    bits: int
    white_is_zero: bool

    @classmethod
    def from_image(cls, image: Image.Image, *, was_opened_here: bool = False) -> HeaderFacts:
        """Read before the pixels are decoded."""
        tiles, tags = getattr(image, "tile", None) if was_opened_here else None, getattr(image, "tag_v2", {})
        arguments: Any = tiles[0][3] if tiles else ""
        raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        bits = tags.get(_BITS, (16,))[0]
        return cls(raw_mode if isinstance(raw_mode, str) else "", bits, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def to_rgb(image: Image.Image, header: HeaderFacts, images: ImageReading, name: str) -> Image.Image:
    """A decoded image as RGB. Raises `DataError` for numbers of which nothing says what is white."""
    if is_deep_grey(image):
        return _convert_grey(image, header, images, name)
    image = _scale_transparent_key(image, header.raw_mode)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if images.alpha == "white":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    if ";16" in header.raw_mode:  # PIL keeps the upper 8 of 16 bits, so that a window cannot be chosen any more
        lows, highs = zip(*rgb.getextrema(), strict=True)
        low, high = min(lows), max(highs)
        if 0 < high - low < 256 // FEW:
            warn_once(
                name,
                f"its 16-bit colours are {low} to {high} of 0 to 255, so little of it is seen; save it with 8 bits.",
            )
    return rgb


def is_deep_grey(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in DEEP_GREY


def warn_once(name: str, warning: str) -> None:
    """Log a warning about a file, the first time in this process."""
    if name not in _warned:
        _warned.add(name)
        log.warning("%s: %s", name, warning)


# Transparency ---------------------------------------------------------------------------------------------------------


def _scale_transparent_key(image: Image.Image, raw_mode: str) -> Image.Image:
    """The image with the colour that a PNG calls transparent in the bits that its pixels have now."""
    key = scaled = image.info.get("transparency")
    if isinstance(key, int) and raw_mode in _KEY_STEPS:
        scaled = min(255, key * _KEY_STEPS[raw_mode])
    elif isinstance(key, int) and image.mode == "1":
        scaled = 255 if key else 0
    elif isinstance(key, tuple) and raw_mode == "RGB;16B":
        scaled = tuple(part >> 8 for part in key)
    if scaled == key:
        return image
    keyed = image.copy()
    keyed.info["transparency"] = scaled
    return keyed


# Grey -----------------------------------------------------------------------------------------------------------------


def _convert_grey(image: Image.Image, header: HeaderFacts, images: ImageReading, name: str) -> Image.Image:
    raw = np.asarray(image)
    key = image.info.get("transparency")
    clear = raw == key if images.alpha == "white" and isinstance(key, int) else np.zeros(1, dtype=bool)
    shown = raw[~clear] if clear.any() and not clear.all() else raw
    grey = _scale_grey(raw, *_find_grey_range(shown, image.mode, header, images, name))
    if header.white_is_zero:
        grey = 255 - grey
    if clear.any():
        grey[clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _find_grey_range(
    shown: np.ndarray, mode: str, header: HeaderFacts, images: ImageReading, name: str
) -> tuple[float, float]:
    """The numbers that become black and white."""
    if isinstance(images.grey, tuple):
        return images.grey
    cure = (
        "write grey=stretch for each image's own range, or grey=[LOW,HIGH] for a fixed one "
        "(model.images.grey in a recipe, --grey of `mmblocks chat`)"
    )
    if mode in DEEP_GREY and images.grey != "stretch":
        raise DataError(
            f"{name}: its pixels are 32-bit numbers (mode {mode}) and nothing says which one is white; "
            f"{cure}, or save the image with 8 bits."
        )
    finite = shown[np.isfinite(shown)] if shown.dtype.kind == "f" else shown
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if images.grey == "stretch":
        return low, high
    most = 2**header.bits - 1
    if low < high and (high - low) * FEW < most:
        warn_once(name, f"its grey is {low:g} to {high:g} of 0 to {most}, so little of it is seen; {cure}.")
    return 0, most


def _scale_grey(raw: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: `low` and below as 0, `high` and above as 255, rounded between; no number as 0."""
    if raw.dtype.kind == "u" and raw.itemsize == 2:
        return _scale_grey(np.arange(2**16), low, high)[raw]
    if low == high:
        return np.zeros(raw.shape, dtype=np.uint8)
    within = np.nan_to_num(raw.astype(np.float64), nan=low).clip(low, high)
    return np.floor((within - low) / (high - low) * 255 + 0.5).astype(np.uint8)
