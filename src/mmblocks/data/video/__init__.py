"""Clips: their shape without decoding them, and the frames a plan asks for. The one door to decord, PyAV, torchcodec.

PyAV judges every clip, counts its frames and decodes them: it alone can be asked whether FFmpeg found a frame, or one
that it was predicted from, corrupt. torchcodec is asked last, for clips in a coding that the FFmpeg inside PyAV lacks
and the system's may have. decord decodes where it is asked for (`reader="decord"`), the same pixels for 8-bit clips of
even size, but wrong ones of damaged clips. `guarded.ClipReader` does the same as `video_shape` and `read_frames`, with
a deadline and a memory bound. Clips are opened per call and nothing is kept: open readers do not survive the fork of a
data worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mmblocks.data.media.files import Slice, name_of
from mmblocks.data.video.clip import CURE, Clip, NoDecoder, NoSuchFrame
from mmblocks.data.video.frames_folder import frames_shape, is_frames, read_frame_files
from mmblocks.data.video.index import Index, index_of
from mmblocks.data.video.with_decord import DecordRefuses, read_decord
from mmblocks.data.video.with_pyav import read_pyav
from mmblocks.data.video.with_torchcodec import TorchcodecRefuses, read_torchcodec, torchcodec_shape
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape

__all__ = ["Reader", "VideoSource", "is_frames", "read_frames", "video_shape"]

VideoSource = str | os.PathLike[str] | bytes | Slice | np.ndarray | tuple[str | os.PathLike[str], ...]
Reader = Literal["auto", "decord", "pyav", "torchcodec"]


def video_shape(source: VideoSource) -> VisualShape:
    """Size (upright), number of frames and their times of a clip: demuxed, and one frame decoded.

    An array (frames, height, width, 3) of uint8 is a clip too, and so are a folder of pictures and a tuple of picture
    files; these have no clock, so their fps is 1.
    """
    if is_frames(source):
        return frames_shape(source)
    if isinstance(source, np.ndarray):
        num_frames, height, width, _ = _checked(source).shape
        return VisualShape("video", Size(height, width), num_frames)
    return _judged(Clip.of(source))[0]


def read_frames(source: VideoSource, indices: Sequence[int], *, reader: Reader = "auto") -> np.ndarray:
    """The frames of these numbers, in this order, repeats allowed: uint8 (n, height, width, 3), RGB, upright.

    `reader` "auto" is PyAV, and torchcodec for what PyAV has no decoder for (see above). Raises `DataError` with the
    damaged frame, its time and the cure for a frame that FFmpeg finds corrupt, or that is decoded from such a one.
    """
    if reader not in get_args(Reader):
        raise DataError(f"reader is {reader!r}; write one of {', '.join(get_args(Reader))}.")
    if is_frames(source):
        return read_frame_files(source, indices)
    if isinstance(source, np.ndarray):
        _check_range(indices, len(_checked(source)), name_of(source, "video"))
        return source[list(indices)]
    clip = Clip.of(source)
    shape, index = _judged(clip)
    _check_range(indices, shape.num_frames, clip.name)
    if len(indices) == 0:
        return np.empty((0, *shape.size, 3), dtype=np.uint8)
    wanted = sorted(set(indices))
    frames = _decode_alone(clip, shape, wanted, reader) if index is None else _decode(clip, index, wanted, reader)
    return frames[np.searchsorted(wanted, indices)]


def _judged(clip: Clip) -> tuple[VisualShape, Index | None]:
    """The shape of a clip and PyAV's index of it, which is None where only torchcodec has a decoder."""
    try:
        index = index_of(clip)
    except NoDecoder as fault:
        try:
            return torchcodec_shape(clip), None
        except TorchcodecRefuses as cause:
            raise NoDecoder(f"{fault} (torchcodec: {cause})") from cause
    return index.shape, index


def _decode(clip: Clip, index: Index, wanted: Sequence[int], reader: Reader) -> np.ndarray:
    try:
        if reader == "torchcodec":
            return read_torchcodec(clip, index.shape, wanted)
        if reader == "decord":
            return read_decord(clip, index, wanted)
    except (DecordRefuses, TorchcodecRefuses) as cause:
        raise DataError(f"{clip.name}: {reader} cannot read this clip ({cause}); use reader='pyav'.") from cause
    return read_pyav(clip, index, wanted)


def _decode_alone(clip: Clip, shape: VisualShape, wanted: Sequence[int], reader: Reader) -> np.ndarray:
    """A clip that PyAV has no decoder for, by torchcodec."""
    if reader in ("decord", "pyav"):
        raise NoDecoder(f"{clip.name}: {reader} cannot read this clip (PyAV has no decoder for it); use reader='auto'.")
    try:
        return read_torchcodec(clip, shape, wanted)
    except TorchcodecRefuses as cause:
        raise DataError(f"{clip.name}: torchcodec breaks off ({cause}); {CURE}") from cause


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
            raise NoSuchFrame(f"{name}: frame {i} was asked for, but the clip has {num_frames}, counted from 0.")
