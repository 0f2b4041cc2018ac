"""Clips given as images: a folder of frames, or the files themselves in their order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.data.media.files import IMAGE_SUFFIXES, describe_source, is_image_name, make_natural_key
from mmblocks.data.media.images import load_image, read_image_size
from mmblocks.data.video.container import NoSuchFrame
from mmblocks.errors import DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.shapes import Size, VisualShape


def is_frame_source(source: Any) -> bool:
    """Whether a video is given as images: a folder, or a tuple of files."""
    if isinstance(source, tuple):
        return True
    is_path = isinstance(source, os.PathLike) or (isinstance(source, str) and not source.startswith("data:"))
    try:
        return is_path and Path(source).is_dir()
    except (OSError, ValueError):  # no usable path; whoever opens it says so
        return False


def read_frames_shape(source: Any, images: ImageReading = DEFAULT_READING) -> VisualShape:
    """The size of the first frame and how many there are, from one header. Images have no clock, so the fps is 1."""
    files = list_frame_files(source)
    return VisualShape("video", read_image_size(files[0], images), len(files))


def read_frame_files(source: Any, indices: Sequence[int], images: ImageReading = DEFAULT_READING) -> np.ndarray:
    """The frames of these numbers, in this order, repeats allowed: uint8 (n, height, width, 3), RGB, upright."""
    files = list_frame_files(source)
    for i in indices:
        if not 0 <= i < len(files):
            raise NoSuchFrame(
                f"{describe_source(source, 'video')}: frame {i} was asked for, but there are {len(files)}, counted from 0."
            )
    size = read_image_size(files[0], images)
    read = {i: _frame(files[i], size, files[0], images) for i in sorted(set(indices))}
    return np.stack([read[i] for i in indices]) if read else np.empty((0, *size, 3), dtype=np.uint8)


def _frame(file: Path, size: Size, first: Path, images: ImageReading) -> np.ndarray:
    frame = np.asarray(load_image(file, images))
    if frame.shape[:2] != size:
        raise DataError(
            f"{file}: this frame is {Size(*frame.shape[:2])} pixels, the first one ({first.name}) {size}; "
            "frames of a video have one size."
        )
    return frame


def list_frame_files(source: Any) -> list[Path]:
    """The images of a video in their order. Raises `DataError` where there is none."""
    if isinstance(source, tuple):
        files = [Path(file) for file in source]
        where = "no frame is named; name the files of a video in their order"
    else:
        folder = Path(source)
        files = sorted((f for f in folder.iterdir() if _is_frame(f)), key=lambda f: make_natural_key(f.name))
        where = f"{folder}: this folder holds no image; put the clip's frames there as {', '.join(IMAGE_SUFFIXES[:4])}"
    if not files:
        raise DataError(f"{where}.")
    return files


def _is_frame(file: Path) -> bool:
    return is_image_name(file.name) and not file.name.startswith(".")
