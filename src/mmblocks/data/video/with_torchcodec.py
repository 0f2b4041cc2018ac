"""Frames by torchcodec, which uses the FFmpeg of the system: for codings that the FFmpeg inside PyAV does not have."""

import importlib
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmblocks.data.video.container import VideoFile
from mmblocks.shapes import Size, VisualShape


class TorchcodecRefuses(Exception):
    """torchcodec is missing, finds no FFmpeg, or the video is not for it. Never leaves this folder."""


def read_torchcodec_shape(video: VideoFile) -> VisualShape:
    """As `read_video_shape`, by torchcodec alone. Raises `TorchcodecRefuses`."""
    decoder = _open_decoder(video)
    try:
        first = decoder.get_frames_at([0]).data.numpy()
        num_frames, fps = int(decoder.metadata.num_frames), float(decoder.metadata.average_fps or 1)
    except Exception as cause:  # RuntimeError, IndexError, TypeError of missing metadata: all mean no
        raise TorchcodecRefuses(_take_first_line(cause)) from cause
    return VisualShape("video", Size(*first.shape[1:3]), num_frames, fps)


def read_torchcodec(video: VideoFile, shape: VisualShape, wanted: Sequence[int]) -> np.ndarray:
    """The wanted frames (frames, height, width, 3). Raises `TorchcodecRefuses` if it counts or sizes them otherwise."""
    decoder = _open_decoder(video)
    try:
        num_frames = decoder.metadata.num_frames
        is_same = num_frames == shape.num_frames
        frames = decoder.get_frames_at(list(wanted)).data.numpy() if is_same else None
    except (
        Exception
    ) as cause:  # RuntimeError for the most part: it cannot seek raw streams, and loses AVI's last frames
        raise TorchcodecRefuses(_take_first_line(cause)) from cause
    if frames is None:
        raise TorchcodecRefuses(f"it counts {num_frames} frames, there are {shape.num_frames}")
    if frames.shape[1:3] != shape.size:
        raise TorchcodecRefuses(f"its frames are {frames.shape[1]}x{frames.shape[2]} instead of {shape.size}")
    return frames


def _open_decoder(video: VideoFile) -> Any:
    if importlib.util.find_spec("torchcodec") is None:
        raise TorchcodecRefuses("torchcodec is not installed")
    content = video.content if isinstance(video.content, bytes) else os.fspath(video.content)
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        # "exact" reads all packets first: frame numbers are then those of the file, not guesses from its rate.
        return decoders.VideoDecoder(content, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    except Exception as cause:  # ImportError, OSError, RuntimeError: it looks for FFmpeg's libraries when first used
        raise TorchcodecRefuses(_take_first_line(cause)) from cause


def _take_first_line(cause: Exception) -> str:
    """What it says, without the function and line of its C++ source."""
    lines = str(cause).splitlines()
    return re.sub(r"^\w+, \S+:\d+, ", "", lines[0]) if lines else repr(cause)
