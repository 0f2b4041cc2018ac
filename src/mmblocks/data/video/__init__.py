"""Clips: their shape without decoding them, and the frames a plan asks for. The one door to decord and PyAV.

PyAV judges every clip and counts its frames; decord, where it is installed, then decodes those in which it was found
to hit the right frames. PyAV decodes the rest. Both give the same pixels for 8-bit clips of even size.
Clips are opened per call and nothing is kept: open readers do not survive the fork of a data worker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mmblocks.data.files import name_of
from mmblocks.data.video.clip import Clip
from mmblocks.data.video.index import Index, index_of
from mmblocks.data.video.with_decord import DecordRefuses, read_decord
from mmblocks.data.video.with_pyav import read_pyav
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape

__all__ = ["Reader", "VideoSource", "read_frames", "video_shape"]

log = logging.getLogger(__name__)

VideoSource = str | os.PathLike[str] | bytes | np.ndarray
Reader = Literal["auto", "decord", "pyav"]


def video_shape(source: VideoSource) -> VisualShape:
    """Size (upright), number of frames and average frames per second of a clip: demuxed, and one frame decoded.

    An array (frames, height, width, 3) of uint8 is a clip too; it has no clock, so its fps is 1.
    """
    if isinstance(source, np.ndarray):
        num_frames, height, width, _ = _checked(source).shape
        return VisualShape("video", Size(height, width), num_frames)
    index = index_of(Clip.of(source))
    return VisualShape("video", index.size, index.num_frames, index.fps)


def read_frames(source: VideoSource, indices: Sequence[int], *, reader: Reader = "auto") -> np.ndarray:
    """The frames of these numbers, in this order, repeats allowed: uint8 (n, height, width, 3), RGB, upright.

    `reader` "auto" is decord where it is installed and takes the clip, else PyAV.
    """
    if reader not in get_args(Reader):
        raise DataError(f"reader is {reader!r}; write one of {', '.join(get_args(Reader))}.")
    if isinstance(source, np.ndarray):
        _check_range(indices, len(_checked(source)), name_of(source, "video"))
        return source[list(indices)]
    clip = Clip.of(source)
    index = index_of(clip)
    _check_range(indices, index.num_frames, clip.name)
    if len(indices) == 0:
        return np.empty((0, *index.size, 3), dtype=np.uint8)
    wanted = sorted(set(indices))
    frames = _decode(clip, index, wanted, reader)
    return frames[np.searchsorted(wanted, indices)]


def _decode(clip: Clip, index: Index, wanted: Sequence[int], reader: Reader) -> np.ndarray:
    if reader != "pyav":
        try:
            return read_decord(clip, index, wanted)
        except DecordRefuses as cause:
            if reader == "decord":
                raise DataError(f"{clip.name}: decord cannot read this clip ({cause}); use reader='pyav'.") from cause
            log.debug("%s: read by PyAV; decord: %s", clip.name, cause)
    return read_pyav(clip, index, wanted)


def _checked(clip: np.ndarray) -> np.ndarray:
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape:
        raise DataError(
            f"{name_of(clip, 'video')}: {clip.dtype} of shape {clip.shape}; "
            "a clip in memory is uint8 of shape (frames, height, width, 3), none of them 0."
        )
    return clip


def _check_range(indices: Sequence[int], num_frames: int, name: str) -> None:
    for i in indices:
        if not 0 <= i < num_frames:
            raise DataError(f"{name}: frame {i} was asked for, but the clip has {num_frames}, counted from 0.")
