"""Frames by PyAV: any clip, by one seek per group of pictures, or from the start where seeking does not find them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from av import VideoFrame
from av.error import FFmpegError

from mmblocks.data.video.clip import CURE, Clip, frames_of, opened, size_of, upright
from mmblocks.data.video.index import Index
from mmblocks.errors import DataError

log = logging.getLogger(__name__)


def read_pyav(clip: Clip, index: Index, wanted: Sequence[int]) -> np.ndarray:
    """The wanted frames (frames, height, width, 3): by seeking, and from the start where that finds not all."""
    found = _read_by_seeking(clip, index, wanted) if index.times else {}
    if len(found) < len(wanted):
        found = _read_from_the_start(clip, index, wanted)
    return np.stack([found[i] for i in wanted])


def _read_by_seeking(clip: Clip, index: Index, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """One seek per group of pictures. What is not found this way is simply missing from the result."""
    assert index.times is not None
    numbers = {time: number for number, time in enumerate(index.times)}
    found: dict[int, np.ndarray] = {}
    with opened(clip) as (container, stream):
        try:
            for seek_point, group in groupby(wanted, key=index.seek_point):
                group = list(group)
                container.seek(seek_point, stream=stream)
                until = index.times[group[-1]]
                found |= _pick(_until(container.decode(stream), until), numbers, group, index, clip)
        except FFmpegError as cause:
            log.debug("%s: seeking failed (%s); read from the start instead", clip.name, cause)
    return found


def _read_from_the_start(clip: Clip, index: Index, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    numbers = {time: number for number, time in enumerate(index.times)} if index.times else None
    with opened(clip) as (container, stream):
        frames = frames_of(container, stream, clip)
        found = _pick(frames, numbers, wanted, index, clip)
    for number in wanted:
        if number not in found:
            raise DataError(f"{clip.name}: frame {number} of {index.num_frames} cannot be decoded; {CURE}")
    return found


def _pick(
    frames: Iterator[VideoFrame],
    numbers: Mapping[int, int] | None,
    wanted: Sequence[int],
    index: Index,
    clip: Clip,
) -> dict[int, np.ndarray]:
    """The wanted frames by number; `numbers` maps times to numbers, without it frames are counted."""
    missing, found = set(wanted), {}
    for position, frame in enumerate(frames):
        number = position if numbers is None else numbers.get(-1 if frame.pts is None else frame.pts)
        if number in missing and not frame.is_corrupt:
            if size_of(frame) != index.size:
                raise DataError(f"{clip.name}: frame {number} is {size_of(frame)}, frame 0 is {index.size}; {CURE}")
            found[number] = upright(frame)
            missing.discard(number)
        if not missing:
            break
    return found


def _until(frames: Iterator[VideoFrame], time: int) -> Iterator[VideoFrame]:
    for frame in frames:
        yield frame
        if frame.pts is None or frame.pts >= time:
            return
