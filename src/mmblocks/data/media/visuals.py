"""A visual of a conversation, opened: its shape for planning, its pixels for the encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmblocks.conversation import Visual
from mmblocks.data.media.files import name_of
from mmblocks.data.media.images import image_size, load_image
from mmblocks.data.media.pixels import Colour, render
from mmblocks.errors import DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.shapes import VisualPlan, VisualShape

if TYPE_CHECKING:
    from mmblocks.data.video.guarded import ClipReader


def shape_of(visual: Visual, clips: ClipReader | None = None, images: ImageReading = DEFAULT_READING) -> VisualShape:
    """What a plan is made from; pictures are not decoded for it, clips one frame only.

    `clips` reads clips with a deadline and a memory bound; without it they are read in this process.
    """
    if visual.kind == "image":
        return VisualShape("image", image_size(visual.source, images), note=visual.note)
    from mmblocks.data.video import is_frames, video_shape  # imports PyAV and decord, which pictures do not need
    from mmblocks.data.video.frames_folder import frames_shape

    if is_frames(visual.source):
        return replace(frames_shape(visual.source, images), note=visual.note, fps=visual.fps)
    read = video_shape if clips is None else clips.shape
    shape = replace(read(visual.source), note=visual.note)
    has_no_clock = isinstance(visual.source, np.ndarray)
    return replace(shape, fps=visual.fps) if has_no_clock else shape


def pixels_of(
    visual: Visual,
    plan: VisualPlan,
    fill: Colour,
    *,
    images: ImageReading = DEFAULT_READING,
    clips: ClipReader | None = None,
) -> Tensor:
    """The pictures of `plan`, its views without repeats: uint8 (pictures, 3, height, width). A frame is read once."""
    pictures = pictures_of(visual, {view.frame for view in plan.views}, images, clips)
    runs = [(frame, list(views)) for frame, views in groupby(plan.pictures, key=lambda view: view.frame)]
    try:
        return torch.cat([render(pictures[frame], views, fill) for frame, views in runs])
    except DataError as error:  # the renderer knows no file names
        raise DataError(f"{name_of(visual.source, visual.kind)}: {error}") from error


def pictures_of(
    visual: Visual, wanted: Iterable[int], images: ImageReading = DEFAULT_READING, clips: ClipReader | None = None
) -> dict[int, Image.Image]:
    """The frames of these numbers, each once; a picture is frame 0."""
    if visual.kind == "image":
        return {0: load_image(visual.source, images)}
    from mmblocks.data.video import is_frames, read_frames
    from mmblocks.data.video.frames_folder import read_frame_files

    numbers = sorted(set(wanted))
    if is_frames(visual.source):
        frames = read_frame_files(visual.source, numbers, images)
    else:
        frames = read_frames(visual.source, numbers) if clips is None else clips.frames(visual.source, numbers)
    return {number: Image.fromarray(frame) for number, frame in zip(numbers, frames, strict=True)}
