"""From one decoded picture to the views of its plan: sheets, one resize, windows. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmblocks.errors import DataError
from mmblocks.shapes import Box, ResizeFilter, Size, View

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
FILTERS: dict[ResizeFilter, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def render(image: Image.Image, views: Sequence[View], fill: Colour) -> Tensor:
    """Cut `views` out of an RGB picture: uint8 (views, 3, height, width), in their order.

    `fill` is the colour of the sheet a picture is framed on, usually the encoder's mean. `View.frame` is not read:
    `image` is that frame. The resize is PIL's, done once for all windows of one sheet.
    """
    if image.mode != "RGB":
        raise DataError(
            f"a picture of mode {image.mode!r} cannot be rendered; open it with load_image, which gives RGB."
        )
    height, width = _window_size(views)
    pixels = np.empty((len(views), height, width, 3), dtype=np.uint8)
    sheets: dict[tuple[Size, Size, Size, ResizeFilter], np.ndarray] = {}
    for view, target in zip(views, pixels, strict=True):
        key = (view.framed, view.resized, view.canvas, view.resize)
        if key not in sheets:
            sheets[key] = np.asarray(_sheet(image, *key, fill=fill))
        target[:] = _cut(sheets[key], view.window)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _window_size(views: Sequence[View]) -> Size:
    sizes = {view.window.size for view in views}
    assert len(sizes) == 1, f"a plan's windows have one size; these have {sorted(sizes)}"
    return sizes.pop()


def _sheet(
    image: Image.Image, framed: Size, resized: Size, canvas: Size, resize: ResizeFilter, *, fill: Colour
) -> Image.Image:
    size = Size(image.height, image.width)
    if size.height > framed.height or size.width > framed.width:
        raise DataError(
            f"the picture is {size} pixels but was planned as at most {framed}; plan it again from its size."
        )
    on_fill = _centred(image, framed, fill)
    shrunk = on_fill.resize((resized.width, resized.height), FILTERS[resize])
    return _centred(shrunk, canvas, BLACK)


def _centred(image: Image.Image, size: Size, colour: Colour) -> Image.Image:
    """`image` in the middle of a sheet; an odd pixel of room goes below and to the right."""
    if (image.height, image.width) == size:
        return image
    sheet = Image.new("RGB", (size.width, size.height), colour)
    sheet.paste(image, ((size.width - image.width) // 2, (size.height - image.height) // 2))
    return sheet


def _cut(sheet: np.ndarray, box: Box) -> np.ndarray:
    cut = sheet[box.top : box.top + box.height, box.left : box.left + box.width]
    assert cut.shape[:2] == box.size, f"window {box} leaves its canvas of {sheet.shape[0]}x{sheet.shape[1]}"
    return cut
