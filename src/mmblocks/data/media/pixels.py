"""From one decoded image to the views of its plan: sheets, one resize, windows. Nothing is decided here."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mmblocks.errors import DataError
from mmblocks.image_reading import Resizer
from mmblocks.shapes import ResizeFilter, Size, View

Colour = tuple[int, int, int]
FILTERS: dict[ResizeFilter, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def render_views(image: Image.Image, views: Sequence[View], fill: Colour, resizer: Resizer = "pillow") -> Tensor:
    """Cut `views` out of an RGB image: uint8 (views, 3, height, width), in their order.

    `fill` is the colour of the sheet an image is framed on, usually the encoder's mean. `View.frame` is not read:
    `image` is that frame. An image is resized once for all windows of one sheet, by PIL or by torch (see `ImageReading`).
    """
    if image.mode != "RGB":
        raise DataError(
            f"an image of mode {image.mode!r} cannot be rendered; open it with load_image, which gives RGB."
        )
    sizes = {view.window.size for view in views}
    assert len(sizes) == 1, f"a plan's windows have one size; these have {sorted(sizes)}"
    pixels = np.empty((len(views), 3, *sizes.pop()), dtype=np.uint8)
    size = Size(image.height, image.width)
    resized: dict[tuple[Size, Size, ResizeFilter], np.ndarray] = {}
    for view, target in zip(views, pixels, strict=True):
        key = (view.framed, view.resized, view.resize)
        if key not in resized:
            if size.height > view.framed.height or size.width > view.framed.width:
                raise DataError(
                    f"the image is {size} pixels but was planned as at most {view.framed}; plan it again from its size."
                )
            resized[key] = _resize(_centre_on_sheet(image, view.framed, fill), view.resized, view.resize, resizer)
        _copy_window(resized[key], view, target)
    return torch.from_numpy(pixels)


def _centre_on_sheet(image: Image.Image, size: Size, colour: Colour) -> Image.Image:
    """`image` in the middle of a sheet; an odd pixel of room goes below and to the right."""
    if (image.height, image.width) == size:
        return image
    sheet = Image.new("RGB", (size.width, size.height), colour)
    sheet.paste(image, ((size.width - image.width) // 2, (size.height - image.height) // 2))
    return sheet


def _resize(image: Image.Image, size: Size, filter_name: ResizeFilter, resizer: Resizer) -> np.ndarray:
    """uint8 (height, width, 3)."""
    if resizer == "pillow" or filter_name != "bicubic":
        return np.asarray(image.resize((size.width, size.height), FILTERS[filter_name]))
    if (image.height, image.width) == size:
        return np.asarray(image)
    # Channels that adjoin in memory are what torch resizes several times as fast as planes, to the same values.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = interpolate(pixels[None], (size.height, size.width), mode="bicubic", antialias=True)[0]
    return resized.permute(1, 2, 0).numpy()


def _copy_window(resized: np.ndarray, view: View, target: np.ndarray) -> None:
    """Write (3, height, width): a view's window of the canvas with the resized image in its middle, the rest of it black."""
    (top, left, height, width), canvas = view.window, view.canvas
    is_inside = 0 <= top <= canvas.height - height and 0 <= left <= canvas.width - width
    assert is_inside, f"window {view.window} leaves its canvas of {canvas}"
    # The window in pixels of the resized image; an odd pixel of room is below and to the right of this.
    top -= (canvas.height - view.resized.height) // 2
    left -= (canvas.width - view.resized.width) // 2
    rows = slice(max(top, 0), max(0, min(top + height, view.resized.height)))
    columns = slice(max(left, 0), max(0, min(left + width, view.resized.width)))
    part = resized[rows, columns]
    if part.shape[:2] != view.window.size:
        target.fill(0)
    if part.size:
        down, right = rows.start - top, columns.start - left
        for channel in range(3):
            target[channel, down : down + part.shape[0], right : right + part.shape[1]] = part[..., channel]
