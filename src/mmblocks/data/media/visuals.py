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
from mmblocks.data.media.files import describe_source
from mmblocks.data.media.images import load_image, read_image_size
from mmblocks.data.media.pixels import Colour, render_views
from mmblocks.errors import DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.shapes import Size, View, VisualPlan, VisualShape

if TYPE_CHECKING:
    from mmblocks.data.video.video_reader import VideoReader


def read_visual_shape(
    visual: Visual, video_reader: VideoReader | None = None, images: ImageReading = DEFAULT_READING
) -> VisualShape:
    """What a plan is made from; images are not decoded for it, videos one frame only.

    video_reader: reads videos with a deadline and a memory bound; without it they are read in this process.
    """
    if visual.kind == "image":
        return VisualShape("image", read_image_size(visual.source, images), note=visual.note)
    # These import PyAV and decord, which images do not need.
    from mmblocks.data.video import is_frame_source, read_video_shape
    from mmblocks.data.video.frames_folder import read_frames_shape

    if is_frame_source(visual.source):
        return replace(read_frames_shape(visual.source, images), note=visual.note, fps=visual.fps)
    read = read_video_shape if video_reader is None else video_reader.read_shape
    shape = replace(read(visual.source), note=visual.note)
    has_no_clock = isinstance(visual.source, np.ndarray)
    return replace(shape, fps=visual.fps) if has_no_clock else shape


def render_visual_plan(
    visual: Visual,
    plan: VisualPlan,
    fill: Colour,
    *,
    images: ImageReading = DEFAULT_READING,
    video_reader: VideoReader | None = None,
) -> Tensor:
    """The unique views of `plan`: uint8 (unique views, 3, height, width). A frame is read once."""
    if visual.kind == "image" and images.decode == "reduced":
        image, unique_views = _load_reduced(visual, plan, images)
        frames = {0: image}
    else:
        unique_views = plan.unique_views
        frames = load_frames(visual, {view.frame for view in plan.views}, images, video_reader)
    runs = [(frame, list(views)) for frame, views in groupby(unique_views, key=lambda view: view.frame)]
    try:
        rendered = [render_views(frames[frame], views, fill, images.resize) for frame, views in runs]
    except DataError as error:  # the renderer knows no file names
        raise DataError(f"{describe_source(visual.source, visual.kind)}: {error}") from error
    return rendered[0] if len(rendered) == 1 else torch.cat(rendered)


def _load_reduced(visual: Visual, plan: VisualPlan, images: ImageReading) -> tuple[Image.Image, tuple[View, ...]]:
    """An image in no more pixels than its views show, and its views of these pixels."""
    if {view.framed for view in plan.views} != {read_image_size(visual.source, images)}:  # it is put on a larger sheet
        return load_image(visual.source, images), plan.unique_views
    heights, widths = zip(*(view.resized for view in plan.views), strict=True)
    image = load_image(visual.source, images, shown=Size(max(heights), max(widths)))
    decoded = Size(image.height, image.width)
    return image, tuple(replace(view, framed=decoded) for view in plan.unique_views)


def load_frames(
    visual: Visual,
    wanted: Iterable[int],
    images: ImageReading = DEFAULT_READING,
    video_reader: VideoReader | None = None,
) -> dict[int, Image.Image]:
    """The frames of these numbers, each once; an image is frame 0."""
    if visual.kind == "image":
        return {0: load_image(visual.source, images)}
    from mmblocks.data.video import is_frame_source, read_frames
    from mmblocks.data.video.frames_folder import read_frame_files

    numbers = sorted(set(wanted))
    if is_frame_source(visual.source):
        frames = read_frame_files(visual.source, numbers, images)
    elif video_reader is None:
        frames = read_frames(visual.source, numbers)
    else:
        frames = video_reader.read_video_frames(visual.source, numbers)
    return {number: Image.fromarray(frame) for number, frame in zip(numbers, frames, strict=True)}
