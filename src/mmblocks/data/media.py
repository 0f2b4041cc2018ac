"""A visual of a conversation, opened: its shape for planning, its pixels for the encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmblocks.conversation import Visual
from mmblocks.data.files import name_of
from mmblocks.data.images import Alpha, image_size, load_image
from mmblocks.data.pixels import Colour, render
from mmblocks.errors import DataError
from mmblocks.shapes import VisualPlan, VisualShape

if TYPE_CHECKING:
    from mmblocks.data.video.guarded import ClipReader


def shape_of(visual: Visual, clips: ClipReader | None = None) -> VisualShape:
    """What a plan is made from; pictures are not decoded for it, clips one frame only.

    `clips` reads clips with a deadline and a memory bound; without it they are read in this process.
    """
    if visual.kind == "image":
        return VisualShape("image", image_size(visual.source), note=visual.note)
    from mmblocks.data.video import is_frames, video_shape  # imports PyAV and decord, which pictures do not need

    read = video_shape if clips is None else clips.shape
    shape = replace(read(visual.source), note=visual.note)
    has_no_clock = isinstance(visual.source, np.ndarray) or is_frames(visual.source)
    return replace(shape, fps=visual.fps) if has_no_clock else shape


def pixels_of(
    visual: Visual, plan: VisualPlan, fill: Colour, *, alpha: Alpha = "drop", clips: ClipReader | None = None
) -> Tensor:
    """The pictures of `plan`, its views without repeats: uint8 (pictures, 3, height, width). A frame is read once."""
    pictures = _pictures(visual, plan, alpha, clips)
    runs = [(frame, list(views)) for frame, views in groupby(plan.pictures, key=lambda view: view.frame)]
    try:
        return torch.cat([render(pictures[frame], views, fill) for frame, views in runs])
    except DataError as error:  # the renderer knows no file names
        raise DataError(f"{name_of(visual.source, visual.kind)}: {error}") from error


def _pictures(
    visual: Visual, plan: VisualPlan, alpha: Alpha, clips: ClipReader | None = None
) -> dict[int, Image.Image]:
    if visual.kind == "image":
        return {0: load_image(visual.source, alpha=alpha)}
    from mmblocks.data.video import read_frames

    numbers = sorted({view.frame for view in plan.views})
    frames = read_frames(visual.source, numbers) if clips is None else clips.frames(visual.source, numbers)
    return {number: Image.fromarray(frame) for number, frame in zip(numbers, frames, strict=True)}
