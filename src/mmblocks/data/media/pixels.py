"""From one decoded image to the views of its plan: sheets, one resize, windows. Nothing is decided here."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmblocks.errors import DataError
from mmblocks.shapes import ResizeFilter, Size, View

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
FILTERS: dict[ResizeFilter, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def render_views(image: Image.Image, views: Sequence[View], fill: Colour) -> Tensor:
    """Cut `views` out of an RGB image: uint8 (views, 3, height, width), in their order.

    `fill` is the colour of the sheet an image is framed on, usually the encoder's mean. `View.frame` is not read:
    `image` is that frame. The resize is PIL's, done once for all windows of one sheet.
    """
    if image.mode != "RGB":
        raise DataError(
            f"an image of mode {image.mode!r} cannot be rendered; open it with load_image, which gives RGB."
        )
    sizes = {view.window.size for view in views}
    assert len(sizes) == 1, f"a plan's windows have one size; these have {sorted(sizes)}"
    pixels = np.empty((len(views), *sizes.pop(), 3), dtype=np.uint8)
    size = Size(image.height, image.width)
    sheets: dict[tuple[Size, Size, Size, ResizeFilter], np.ndarray] = {}
    for view, target in zip(views, pixels, strict=True):
        key = (view.framed, view.resized, view.canvas, view.resize)
        if key not in sheets:
            if size.height > view.framed.height or size.width > view.framed.width:
                raise DataError(
                    f"the image is {size} pixels but was planned as at most {view.framed}; plan it again from its size."
                )
            framed = _centre_on_sheet(image, view.framed, fill)
            resized = framed.resize((view.resized.width, view.resized.height), FILTERS[view.resize])
            sheets[key] = np.asarray(_centre_on_sheet(resized, view.canvas, BLACK))
        top, left, height, width = view.window
        window = sheets[key][top : top + height, left : left + width]
        assert window.shape[:2] == view.window.size, f"window {view.window} leaves its canvas of {view.canvas}"
        target[:] = window
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _centre_on_sheet(image: Image.Image, size: Size, colour: Colour) -> Image.Image:
    """`image` in the middle of a sheet; an odd pixel of room goes below and to the right."""
    if (image.height, image.width) == size:
        return image
    sheet = Image.new("RGB", (size.width, size.height), colour)
    sheet.paste(image, ((size.width - image.width) // 2, (size.height - image.height) // 2))
    return sheet
