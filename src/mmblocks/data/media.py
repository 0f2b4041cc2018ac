"""A visual of a conversation, opened: its shape for planning, its pixels for the encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmblocks.conversation import Visual
from mmblocks.data.files import name_of
from mmblocks.data.images import Alpha, image_size, load_image
from mmblocks.data.pixels import Colour, render
from mmblocks.data.video import read_frames, video_shape
from mmblocks.errors import DataError
from mmblocks.shapes import VisualPlan, VisualShape


def shape_of(visual: Visual) -> VisualShape:
    """What a plan is made from; pictures are not decoded for it, clips one frame only."""
    if visual.kind == "image":
        return VisualShape("image", image_size(visual.source), note=visual.note)
    shape = replace(video_shape(visual.source), note=visual.note)
    return replace(shape, fps=visual.fps) if isinstance(visual.source, np.ndarray) else shape


def pixels_of(visual: Visual, plan: VisualPlan, fill: Colour, *, alpha: Alpha = "drop") -> Tensor:
    """The views of `plan`: uint8 (views, 3, height, width). Each frame of a clip is read once, however often shown."""
    pictures = _pictures(visual, plan, alpha)
    runs = [(frame, list(views)) for frame, views in groupby(plan.views, key=lambda view: view.frame)]
    try:
        return torch.cat([render(pictures[frame], views, fill) for frame, views in runs])
    except DataError as error:  # the renderer knows no file names
        raise DataError(f"{name_of(visual.source, visual.kind)}: {error}") from error


def _pictures(visual: Visual, plan: VisualPlan, alpha: Alpha) -> dict[int, Image.Image]:
    if visual.kind == "image":
        return {0: load_image(visual.source, alpha=alpha)}
    numbers = sorted({view.frame for view in plan.views})
    frames = read_frames(visual.source, numbers)
    return {number: Image.fromarray(frame) for number, frame in zip(numbers, frames, strict=True)}
