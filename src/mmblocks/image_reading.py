"""How images are converted to 8-bit RGB. It is part of a model, which must read images as in its training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.settings import convert_to_type, find_faults, list_settings

Resizer = Literal["pillow", "torch"]


@dataclass(frozen=True, slots=True)
class ImageReading:
    """How images other than 8-bit RGB are converted, how large images may be, and what resizes them.

    alpha: "white" puts transparent images on white, as viewers do; "drop" shows the colours that transparent pixels hide,
        as LLaVA does.
    grey: for grey images of more than 8 bits, the numbers that become black and white; values outside are clipped. "full"
        is the range of 16 bits, "stretch" the image's own minimum and maximum, [low, high] these numbers, like a
        radiologist's window. Images of 32-bit numbers have no full range.
    max_px: most pixels (height x width) that are decoded. Larger images are refused; a larger JPEG is decoded at a half,
        a quarter or an eighth of its sides where this is small enough.
    exif: turn images upright, as EXIF says; LLaVA does not.
    resize: what resizes images and frames to views. "pillow" is PIL, as in the original code. "torch" is torch, as in the
        processors of transformers that use torchvision, and takes a fraction of the time; up to one in a hundred values
        of a usual image differs, by 1 or 2 of 255. Lanczos is always PIL's.
    decode: "whole" decodes every pixel. "reduced" decodes a JPEG at a half, a quarter or an eighth of its sides where all
        its views show it no larger than that, which large photographs take a fraction of the time for; values then differ.
    """

    alpha: Literal["white", "drop"] = "white"
    grey: Literal["full", "stretch"] | tuple[float, float] = "full"
    max_px: int = 64_000_000
    exif: bool = True
    resize: Resizer = "pillow"
    decode: Literal["whole", "reduced"] = "whole"

    def __post_init__(self) -> None:
        if faults := list(find_reading_faults(asdict(self))):
            raise ConfigError.from_faults(faults)

    @classmethod
    def from_dict(cls, raw: object, where: str = "images") -> ImageReading:
        """Read plain values. Raises `ConfigError` that lists every fault; keys start with `where`."""
        if faults := list(find_reading_faults(raw, where)):
            raise ConfigError.from_faults(faults)
        assert isinstance(raw, Mapping)
        known = list_settings(cls)
        return cls(**{name: convert_to_type(known[name].annotation, value) for name, value in raw.items()})

    def with_changes(self, changes: Mapping[str, Any]) -> ImageReading:
        """The same with other values for some settings."""
        return ImageReading.from_dict({**asdict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Every setting as JSON knows it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def find_reading_faults(raw: object, where: str = "images") -> Iterator[Fault]:
    """Every fault of plain values meant for an `ImageReading`."""
    if not isinstance(raw, Mapping):
        names = ", ".join(list_settings(ImageReading))
        yield Fault(where, f"{raw!r} holds no settings.", f"Write {where}.alpha=..., or a mapping of {names}.")
        return
    yield from find_faults(ImageReading, raw, where)
    max_px, grey = raw.get("max_px"), raw.get("grey")
    if type(max_px) is int and max_px < 1:
        yield Fault(f"{where}.max_px", f"max_px={max_px} lets no image pass.", "Write a number of pixels above 0.")
    if isinstance(grey, list | tuple) and len(grey) == 2 and all(isinstance(n, int | float) for n in grey):
        low, high = grey
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            cure = "Write [low, high] with low below high, such as [0, 1023]."
            yield Fault(f"{where}.grey", f"grey={[low, high]} is no range.", cure)


DEFAULT_READING = ImageReading()
