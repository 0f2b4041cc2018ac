"""How a whole frame becomes one view for the encoder. Integers only."""

from mmblocks.geometry.anyres import centre_box, pad_to_square, resize_to_cover
from mmblocks.shapes import Box, Size, View


def make_full_window(view: Size) -> Box:
    """The window of the whole view."""
    return Box(0, 0, view.height, view.width)


def make_squashed_view(frame: int, size: Size, view_px: Size) -> View:
    """The whole frame, squashed to the view: SigLIP's processor, and the base view of AnyRes."""
    return View(frame, framed=size, resized=view_px, canvas=view_px, window=make_full_window(view_px))


def make_cropped_view(frame: int, size: Size, view_px: Size) -> View:
    """The middle of the frame at its own aspect ratio: CLIP's processor."""
    resized = resize_to_cover(size, view_px)
    return View(frame, framed=size, resized=resized, canvas=resized, window=centre_box(view_px, resized))


def make_padded_view(frame: int, size: Size, view_px: Size) -> View:
    """The whole frame in the middle of a mean-coloured square, as LLaVA-1.5 shows images."""
    return View(frame, framed=pad_to_square(size), resized=view_px, canvas=view_px, window=make_full_window(view_px))


def make_processed_view(frame: int, size: Size, view_px: Size, squash: bool) -> View:
    """What the encoder's own image processor makes of a frame."""
    return (make_squashed_view if squash else make_cropped_view)(frame, size, view_px)
