"""Frames by PyAV: any video, by one seek per group of images, or from the start where seeking does not find them.

A frame is given only if FFmpeg finds nothing wrong with it and with what is decoded for it, from its key frame on.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from av import VideoFrame
from av.error import FFmpegError

from mmblocks.data.video.container import (
    CURE,
    FrameDamage,
    VideoFile,
    compute_frame_size,
    decode_frames,
    make_decoder,
    open_video,
    to_upright,
)
from mmblocks.data.video.index import VideoIndex
from mmblocks.errors import DataError

log = logging.getLogger(__name__)


class _DamagedVideo(DataError):
    """FFmpeg finds something wrong with what wanted frames are decoded from."""


class _WantedGroup(NamedTuple):
    """Wanted frames behind one key frame. All that is decoded for them is shown from `begin` to `end`."""

    seek_to: int
    begin: int
    end: int
    wanted: tuple[int, ...]


def read_pyav(video: VideoFile, index: VideoIndex, wanted: Sequence[int]) -> np.ndarray:
    """The wanted frames (frames, height, width, 3), which ascend: by seeking, and from the start where that fails."""
    found: dict[int, np.ndarray] = {}
    if index.entries:
        groups = []
        for key, group in groupby(wanted, key=index.find_key_frame):
            numbers = tuple(group)
            end = max(index.entries[i].decoded_to for i in numbers)
            groups.append(_WantedGroup(key.seek_to, key.time, end, numbers))
        found = _read_by_seeking(video, index, groups)
        if missing := [group for group in groups if any(number not in found for number in group.wanted)]:
            with open_video(video) as (container, stream):
                found |= _pick_frames(decode_frames(container, stream, make_decoder(stream)), missing, index, video)
    else:  # by their place in the order of showing; the index has decoded them all and found them sound
        with open_video(video) as (container, stream):
            frames = decode_frames(container, stream, make_decoder(stream))
            for number, frame in enumerate(frame for frame in frames if not isinstance(frame, FrameDamage)):
                if number in wanted:
                    found[number] = _to_pixels(frame, number, index, video)
                if number == wanted[-1]:
                    break
    for number in wanted:
        if number not in found:
            raise DataError(
                f"{video.name}: {index.describe_frame(number)} of {index.num_frames} cannot be decoded; {CURE}"
            )
    return np.stack([found[i] for i in wanted])


def _read_by_seeking(video: VideoFile, index: VideoIndex, groups: Sequence[_WantedGroup]) -> dict[int, np.ndarray]:
    """One seek per group. A group in which anything looks wrong is left out: seeking may be what is wrong."""
    found: dict[int, np.ndarray] = {}
    with open_video(video) as (container, stream):
        decoder = make_decoder(stream)
        for group in groups:
            try:
                container.seek(group.seek_to, stream=stream)
                decoder.flush_buffers()
                found |= _pick_frames(decode_frames(container, stream, decoder), [group], index, video)
            except (FFmpegError, _DamagedVideo) as cause:
                log.debug("%s: seeking failed (%s); read from the start instead", video.name, cause)
    return found


def _pick_frames(
    frames: Iterator[VideoFrame | FrameDamage], groups: Sequence[_WantedGroup], index: VideoIndex, video: VideoFile
) -> dict[int, np.ndarray]:
    """The wanted frames by number. Raises `_DamagedVideo` where something is wrong with what they are decoded from."""
    numbers = {index.entries[number].time: number for group in groups for number in group.wanted}
    found: dict[int, np.ndarray] = {}
    for frame in frames:
        if isinstance(frame, FrameDamage):
            for group in groups:
                if frame.time is None or group.begin <= frame.time <= group.end:
                    at = frame.time or 0
                    goal = next((i for i in group.wanted if index.entries[i].decoded_to >= at), group.wanted[-1])
                    number = goal if frame.time is None else index.find_frame(frame.time)
                    needed = "" if number == goal else f", which frame {goal} is decoded from"
                    where = f"{index.describe_frame(number)}{needed}"
                    raise _DamagedVideo(f"{video.name}: damaged at {where} ({frame.reason}); {CURE}")
        elif frame.pts is not None:
            if frame.pts in numbers:
                found[numbers[frame.pts]] = _to_pixels(frame, numbers[frame.pts], index, video)
            if frame.pts >= groups[-1].end:
                break
    return found


def _to_pixels(frame: VideoFrame, number: int, index: VideoIndex, video: VideoFile) -> np.ndarray:
    size = compute_frame_size(frame, index.quarter_turns)
    if size != index.size:
        raise DataError(f"{video.name}: frame {number} is {size}, frame 0 is {index.size}; {CURE}")
    return to_upright(frame, index.quarter_turns)
