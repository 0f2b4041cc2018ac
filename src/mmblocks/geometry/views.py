"""The ways a whole frame becomes one view of the encoder. Integers only."""

from __future__ import annotations

from mmblocks.geometry.anyres import centred, padded_square, resized_over
from mmblocks.shapes import Box, Size, View


def whole(view: Size) -> Box:
    """The window that cuts nothing away."""
    return Box(0, 0, view.height, view.width)


def squashed(frame: int, size: Size, view_px: Size) -> View:
    """The whole frame, its aspect ratio given up: SigLIP's processor, and the base view of AnyRes."""
    return View(frame, framed=size, resized=view_px, canvas=view_px, window=whole(view_px))


def cropped(frame: int, size: Size, view_px: Size) -> View:
    """The middle of the frame, its aspect ratio kept: CLIP's processor."""
    resized = resized_over(size, view_px)
    return View(frame, framed=size, resized=resized, canvas=resized, window=centred(view_px, resized))


def padded(frame: int, size: Size, view_px: Size) -> View:
    """The whole frame in the middle of a mean-coloured square, as LLaVA-1.5 shows pictures."""
    return View(frame, framed=padded_square(size), resized=view_px, canvas=view_px, window=whole(view_px))


def processed(frame: int, size: Size, view_px: Size, squash: bool) -> View:
    """What the encoder's own image processor makes of a frame."""
    return (squashed if squash else cropped)(frame, size, view_px)
