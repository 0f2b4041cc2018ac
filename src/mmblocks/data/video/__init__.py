"""Videos: their shape without decoding them, and the frames of a plan. Only this package imports decord, PyAV, torchcodec.

PyAV checks every video, counts its frames and decodes them: it alone says whether FFmpeg found a frame, or one that it was
predicted from, corrupt. torchcodec comes last, for videos in a coding that the FFmpeg inside PyAV lacks and the system's
may have. decord decodes with `reader="decord"`: the same pixels for 8-bit videos of even size, but wrong ones of damaged
videos. `video_reader.VideoReader` does the same as `read_video_shape` and `read_frames`, with a deadline and a memory
bound. Videos are opened per call and nothing is kept: open readers do not survive the fork of a data worker.
"""

import os
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mmblocks.data.media.files import FileSlice, describe_source
from mmblocks.data.video.container import CURE, NoDecoder, NoSuchFrame, VideoFile
from mmblocks.data.video.frames_folder import is_frame_source, read_frame_files, read_frames_shape
from mmblocks.data.video.index import IndexedVideo, open_indexed, read_index
from mmblocks.data.video.with_decord import DecordRefuses, read_decord
from mmblocks.data.video.with_pyav import count_decoding_threads, read_pyav
from mmblocks.data.video.with_torchcodec import TorchcodecRefuses, read_torchcodec, read_torchcodec_shape
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape

__all__ = ["ReaderName", "VideoSource", "count_decoding_threads", "is_frame_source", "read_frames", "read_video_shape"]

VideoSource = str | os.PathLike[str] | bytes | FileSlice | np.ndarray | tuple[str | os.PathLike[str], ...]
ReaderName = Literal["auto", "decord", "pyav", "torchcodec"]


def read_video_shape(source: VideoSource) -> VisualShape:
    """Size (upright), number of frames and their times of a video: demuxed, and one frame decoded.

    An array (frames, height, width, 3) of uint8 is a video too, and so are a folder of images and a tuple of image
    files; these have no clock, so their fps is 1.
    """
    if is_frame_source(source):
        return read_frames_shape(source)
    if isinstance(source, np.ndarray):
        num_frames, height, width, _ = _check_array(source).shape
        return VisualShape("video", Size(height, width), num_frames)
    video = VideoFile.from_source(source)
    try:
        return read_index(video).shape
    except NoDecoder as fault:
        return _read_shape_by_torchcodec(video, fault)


def read_frames(
    source: VideoSource, indices: Sequence[int], *, reader: ReaderName = "auto", threads: int | None = None
) -> np.ndarray:
    """The frames of these numbers, in this order, repeats allowed: uint8 (n, height, width, 3), RGB, upright.

    `reader` "auto" is PyAV, and torchcodec for what PyAV has no decoder for (see above). threads: how many decode
    different parts of a video for PyAV, which changes no pixel; None is `count_decoding_threads()`. Raises `DataError` with
    the damaged frame, its time and the cure for a frame that FFmpeg finds corrupt, or that is decoded from such a one.
    """
    if reader not in get_args(ReaderName):
        raise DataError(f"reader is {reader!r}; write one of {', '.join(get_args(ReaderName))}.")
    if is_frame_source(source):
        return read_frame_files(source, indices)
    if isinstance(source, np.ndarray):
        _check_indices(indices, len(_check_array(source)), describe_source(source, "video"))
        return source[list(indices)]
    video = VideoFile.from_source(source)
    wanted = sorted(set(indices))
    try:
        with open_indexed(video) as indexed:
            _check_indices(indices, indexed.index.num_frames, video.name)
            frames = _read_wanted(indexed, wanted, reader, count_decoding_threads() if threads is None else threads)
    except NoDecoder as fault:
        shape = _read_shape_by_torchcodec(video, fault)
        _check_indices(indices, shape.num_frames, video.name)
        if reader in ("decord", "pyav"):
            raise NoDecoder(
                f"{video.name}: {reader} cannot read this video (PyAV has no decoder for it); use reader='auto'."
            ) from fault
        try:
            frames = read_torchcodec(video, shape, wanted) if wanted else np.empty((0, *shape.size, 3), dtype=np.uint8)
        except TorchcodecRefuses as cause:
            raise DataError(f"{video.name}: torchcodec breaks off ({cause}); {CURE}") from cause
    return frames if wanted == list(indices) else frames[np.searchsorted(wanted, indices)]


def _read_wanted(indexed: IndexedVideo, wanted: Sequence[int], reader: ReaderName, threads: int) -> np.ndarray:
    if not wanted:
        return np.empty((0, *indexed.index.size, 3), dtype=np.uint8)
    try:
        if reader == "decord":
            return read_decord(indexed.video, indexed.index, wanted)
        if reader == "torchcodec":
            return read_torchcodec(indexed.video, indexed.index.shape, wanted)
    except (DecordRefuses, TorchcodecRefuses) as cause:
        name = indexed.video.name
        raise DataError(f"{name}: {reader} cannot read this video ({cause}); use reader='pyav'.") from cause
    return read_pyav(indexed, wanted, threads)


def _read_shape_by_torchcodec(video: VideoFile, fault: NoDecoder) -> VisualShape:
    """The shape of a video that PyAV refuses by this fault."""
    try:
        return read_torchcodec_shape(video)
    except TorchcodecRefuses as cause:
        raise NoDecoder(f"{fault} (torchcodec: {cause})") from cause


def _check_array(video: np.ndarray) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise DataError(
            f"{describe_source(video, 'video')}: {video.dtype} of shape {video.shape}; "
            "a video in memory is uint8 of shape (frames, height, width, 3), none of them 0."
        )
    return video


def _check_indices(indices: Sequence[int], num_frames: int, name: str) -> None:
    for i in indices:
        if not 0 <= i < num_frames:
            raise NoSuchFrame(f"{name}: frame {i} was asked for, but the video has {num_frames}, counted from 0.")
