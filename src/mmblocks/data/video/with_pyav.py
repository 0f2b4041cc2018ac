"""Frames by PyAV: any clip, by one seek per group of pictures, or from the start where seeking does not find them.

A frame is given only if FFmpeg finds nothing wrong with it and with what is decoded for it, from its key frame on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from av import VideoFrame
from av.error import FFmpegError

from mmblocks.data.video.clip import CURE, Clip, Damage, decoded, decoder_of, opened, size_of, upright
from mmblocks.data.video.index import Index
from mmblocks.errors import DataError

log = logging.getLogger(__name__)


class _Damaged(DataError):
    """FFmpeg finds something wrong with what wanted frames are decoded from."""


class _WantedGroup(NamedTuple):
    """Wanted frames behind one key frame. All that is decoded for them is shown from `begin` to `end`."""

    seek_to: int
    begin: int
    end: int
    wanted: tuple[int, ...]


def read_pyav(clip: Clip, index: Index, wanted: Sequence[int]) -> np.ndarray:
    """The wanted frames (frames, height, width, 3), which ascend: by seeking, and from the start where that fails."""
    if not index.entries:
        found = _read_counting(clip, index, wanted)
    else:
        groups = _groups(index, wanted)
        found = _read_by_seeking(clip, index, groups)
        missing = [group for group in groups if any(number not in found for number in group.wanted)]
        found |= _read_from_the_start(clip, index, missing) if missing else {}
    for number in wanted:
        if number not in found:
            raise DataError(f"{clip.name}: {index.moment(number)} of {index.num_frames} cannot be decoded; {CURE}")
    return np.stack([found[i] for i in wanted])


def _groups(index: Index, wanted: Sequence[int]) -> list[_WantedGroup]:
    groups = []
    for key, of_key in groupby(wanted, key=index.key_of):
        numbers = tuple(of_key)
        groups.append(_WantedGroup(key.seek_to, key.time, max(index.entries[i].decoded_to for i in numbers), numbers))
    return groups


def _read_by_seeking(clip: Clip, index: Index, groups: Sequence[_WantedGroup]) -> dict[int, np.ndarray]:
    """One seek per group. A group in which anything looks wrong is left out: seeking may be what is wrong."""
    found: dict[int, np.ndarray] = {}
    with opened(clip) as (container, stream):
        decoder = decoder_of(stream)
        for group in groups:
            try:
                container.seek(group.seek_to, stream=stream)
                decoder.flush_buffers()
                found |= _pick(decoded(container, stream, decoder), [group], index, clip)
            except (FFmpegError, _Damaged) as cause:
                log.debug("%s: seeking failed (%s); read from the start instead", clip.name, cause)
    return found


def _read_from_the_start(clip: Clip, index: Index, groups: Sequence[_WantedGroup]) -> dict[int, np.ndarray]:
    with opened(clip) as (container, stream):
        return _pick(decoded(container, stream, decoder_of(stream)), groups, index, clip)


def _pick(
    frames: Iterator[VideoFrame | Damage], groups: Sequence[_WantedGroup], index: Index, clip: Clip
) -> dict[int, np.ndarray]:
    """The wanted frames by number. Raises `_Damaged` where something is wrong with what they are decoded from."""
    numbers = {index.entries[number].time: number for group in groups for number in group.wanted}
    found: dict[int, np.ndarray] = {}
    for frame in frames:
        if isinstance(frame, Damage):
            for group in groups:
                if frame.time is None or group.begin <= frame.time <= group.end:
                    raise _damaged(clip, index, group, frame)
        elif frame.pts is not None:
            if frame.pts in numbers:
                found[numbers[frame.pts]] = _pixels(frame, numbers[frame.pts], index, clip)
            if frame.pts >= groups[-1].end:
                break
    return found


def _damaged(clip: Clip, index: Index, group: _WantedGroup, damage: Damage) -> _Damaged:
    asked = next((i for i in group.wanted if index.entries[i].decoded_to >= (damage.time or 0)), group.wanted[-1])
    number = asked if damage.time is None else index.number_at(damage.time)
    needed = "" if number == asked else f", which frame {asked} is decoded from"
    return _Damaged(f"{clip.name}: damaged at {index.moment(number)}{needed} ({damage.reason}); {CURE}")


def _read_counting(clip: Clip, index: Index, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """Frames by their place in the order of showing. The index has decoded them all and found them sound."""
    numbers, found = set(wanted), {}
    with opened(clip) as (container, stream):
        frames = decoded(container, stream, decoder_of(stream))
        for number, frame in enumerate(frame for frame in frames if not isinstance(frame, Damage)):
            if number in numbers:
                found[number] = _pixels(frame, number, index, clip)
            if number == wanted[-1]:
                break
    return found


def _pixels(frame: VideoFrame, number: int, index: Index, clip: Clip) -> np.ndarray:
    size = size_of(frame, index.quarter_turns)
    if size != index.size:
        raise DataError(f"{clip.name}: frame {number} is {size}, frame 0 is {index.size}; {CURE}")
    return upright(frame, index.quarter_turns)
