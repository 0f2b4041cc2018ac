"""Videos given as images: a folder of frames, or the files themselves in their order."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np

from mmblocks.data.media.files import IMAGE_SUFFIXES, describe_source, is_image_name, make_natural_key
from mmblocks.data.media.images import load_image, read_image_size
from mmblocks.data.video.container import NoSuchFrame
from mmblocks.errors import DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.shapes import Size, VisualShape

FrameSource = tuple[str | os.PathLike[str], ...] | str | os.PathLike[str]


def is_frame_source(source: object) -> TypeGuard[FrameSource]:
    """Whether a video is given as images: a folder, or a tuple of files."""
    if isinstance(source, tuple):
        return True
    if not isinstance(source, os.PathLike | str) or (isinstance(source, str) and source.startswith("data:")):
        return False
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):  # no usable path; whoever opens it says so
        return False


def read_frames_shape(source: FrameSource, images: ImageReading = DEFAULT_READING) -> VisualShape:
    """The size of the first frame and how many there are, from one header. Images have no clock, so the fps is 1."""
    files = list_frame_files(source)
    return VisualShape("video", read_image_size(files[0], images), len(files))


def read_frame_files(source: FrameSource, indices: Sequence[int], images: ImageReading = DEFAULT_READING) -> np.ndarray:
    """The frames of these numbers, in this order, repeats allowed: uint8 (n, height, width, 3), RGB, upright."""
    files = list_frame_files(source)
    for i in indices:
        if not 0 <= i < len(files):
            raise NoSuchFrame(
                f"{describe_source(source, 'video')}: frame {i} was asked for, but there are {len(files)}, counted from 0."
            )
    size = read_image_size(files[0], images)
    frames = {i: np.asarray(load_image(files[i], images)) for i in sorted(set(indices))}
    for i, frame in frames.items():
        if frame.shape[:2] != size:
            raise DataError(
                f"{files[i]}: this frame is {Size(*frame.shape[:2])} pixels, the first one ({files[0].name}) {size}; "
                "frames of a video have one size."
            )
    return np.stack([frames[i] for i in indices]) if frames else np.empty((0, *size, 3), dtype=np.uint8)


def list_frame_files(source: FrameSource) -> list[Path]:
    """The images of a video in their order. Raises `DataError` where there is none."""
    if isinstance(source, tuple):
        files = [Path(file) for file in source]
        where = "no frame is named; name the files of a video in their order"
    else:
        folder = Path(source)
        frames = (f for f in folder.iterdir() if is_image_name(f.name) and not f.name.startswith("."))
        files = sorted(frames, key=lambda f: make_natural_key(f.name))
        where = f"{folder}: this folder holds no image; put the video's frames there as {', '.join(IMAGE_SUFFIXES[:4])}"
    if not files:
        raise DataError(f"{where}.")
    return files
