"""Frames by PyAV: any video, by what each group of images needs of its packets, or from the start where that fails.

A frame is given only if FFmpeg finds nothing wrong with it and with what is decoded for it, from its key frame on.
"""

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np
from av import Packet, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from mmblocks.cores import count_own_cores
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
from mmblocks.data.video.index import IndexedVideo, KeyFrame, VideoIndex
from mmblocks.data.video.packets import is_needed_by_others
from mmblocks.errors import DataError

log = logging.getLogger(__name__)

_MOST_THREADS = 4
"""More would be idle: a video has few groups of images with wanted frames, and opening it again has its price."""

_CONTAINERS_WITH_INDEX = ("mov", "matroska")
"""FFmpeg's names of those whose files list their key frames."""

_NEAR_PACKETS = 64
"""A key frame that is at most so many packets ahead is read up to; one that is further away is sought."""


class _DamagedVideo(DataError):
    """FFmpeg finds something wrong with what wanted frames are decoded from."""


class _WantedGroup(NamedTuple):
    """Wanted frames behind one key frame. All that is decoded for them is shown from the key frame to `end`.

    last_packet: the number of the last packet that is decoded for them.
    """

    key: KeyFrame
    last_packet: int
    end: int
    wanted: tuple[int, ...]


class _Pixels:
    """The wanted frames as an array (frames, height, width, 3), each converted and written once."""

    def __init__(self, video: VideoFile, index: VideoIndex, wanted: Sequence[int]) -> None:
        self._video, self._index = video, index
        self._places = {number: place for place, number in enumerate(wanted)}
        self.array = np.empty((len(wanted), *index.size, 3), dtype=np.uint8)

    def write_frame(self, frame: VideoFrame, number: int) -> None:
        """Raises `DataError` for a frame of another size than that of the video."""
        size = compute_frame_size(frame, self._index.quarter_turns)
        if size != self._index.size:
            raise DataError(f"{self._video.name}: frame {number} is {size}, frame 0 is {self._index.size}; {CURE}")
        self.array[self._places[number]] = to_upright(frame, self._index.quarter_turns)


class _PacketReader:
    """The packets of one group of images after the other, in the order of the file."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container, self._stream = container, stream
        self._packets: Iterator[Packet] = iter(())
        self._next: int | None = None  # the number of the next packet, where it is known

    def read_group(self, group: _WantedGroup) -> Iterator[Packet]:
        """From the group's key frame to its last packet, and an empty one; only that where the key frame is not found."""
        if self._next is None or not 0 <= group.key.packet - self._next <= _NEAR_PACKETS:
            self._container.seek(group.key.seek_to, stream=self._stream)
            self._packets = (packet for packet in self._container.demux(self._stream) if packet.size)
        self._next = None
        for packet in self._packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= group.key.time:
                if packet.pts == group.key.time:
                    yield from self._read_on(packet, group)
                break
        yield Packet()

    def _read_on(self, first: Packet, group: _WantedGroup) -> Iterator[Packet]:
        self._next = group.key.packet + 1
        yield first
        while self._next <= group.last_packet and (packet := next(self._packets, None)) is not None:
            self._next += 1
            yield packet


def count_decoding_threads(workers: int = 0) -> int:
    """How many threads decode a video where `workers` processes of each rank read videos at a time; 0 is this one alone.

    At most four, and not more than there are processors for each process. In a data worker, which cannot tell how many
    others there are, it is one.
    """
    if workers == 0 and multiprocessing.parent_process() is not None:
        return 1
    return max(1, min(_MOST_THREADS, count_own_cores() // max(1, workers)))


def read_pyav(indexed: IndexedVideo, wanted: Sequence[int], threads: int) -> np.ndarray:
    """The wanted frames (frames, height, width, 3), which ascend: group by group, and from the start where that fails.

    Groups do not depend on each other, so `threads` threads decode some each. Threads within FFmpeg's decoder are no
    choice: with these it misses damage in H.264 that it finds without.
    """
    video, index = indexed.video, indexed.index
    pixels, found = _Pixels(video, index, wanted), set[int]()
    if index.entries:
        groups = _list_groups(index, wanted)
        found = _read_side_by_side(indexed, groups, pixels, threads)
        if missing := [group for group in groups if any(number not in found for number in group.wanted)]:
            with open_video(video) as (container, stream):
                frames = decode_frames(container.demux(stream), make_decoder(stream))
                found |= _pick_frames(frames, missing, index, pixels, video)
    else:  # by their place in the order of showing; the index has decoded them all and found them sound
        with open_video(video) as (container, stream):
            frames = decode_frames(container.demux(stream), make_decoder(stream))
            for number, frame in enumerate(frame for frame in frames if not isinstance(frame, FrameDamage)):
                if number in wanted:
                    pixels.write_frame(frame, number)
                    found.add(number)
                if number == wanted[-1]:
                    break
    for number in wanted:
        if number not in found:
            raise DataError(
                f"{video.name}: {index.describe_frame(number)} of {index.num_frames} cannot be decoded; {CURE}"
            )
    return pixels.array


def _list_groups(index: VideoIndex, wanted: Sequence[int]) -> list[_WantedGroup]:
    groups = []
    for key, group in groupby(wanted, key=index.find_key_frame):
        numbers = tuple(group)
        entries = [index.entries[number] for number in numbers]
        last_packet, end = max(entry.packet for entry in entries), max(entry.decoded_to for entry in entries)
        groups.append(_WantedGroup(key, last_packet, end, numbers))
    return groups


def _read_side_by_side(
    indexed: IndexedVideo, groups: Sequence[_WantedGroup], pixels: _Pixels, threads: int
) -> set[int]:
    """As `_read_groups`, by several threads that each open the video; the first has it open.

    Containers without an index of their key frames are read by one: in a damaged one, where a seek leads is a guess.
    """
    has_index = any(name in indexed.container.format.name for name in _CONTAINERS_WITH_INDEX)
    shares = _share_groups(groups, threads if has_index else 1)

    def read_share(share: Sequence[_WantedGroup]) -> set[int]:
        with open_video(indexed.video) as (container, stream):
            return _read_groups(replace(indexed, container=container, stream=stream), share, pixels)

    with ThreadPoolExecutor(max(1, threads - 1)) as pool:
        others = [pool.submit(read_share, share) for share in shares[1:]]
        found = _read_groups(indexed, shares[0], pixels)
        return found.union(*(other.result() for other in others))


def _share_groups(groups: Sequence[_WantedGroup], threads: int) -> list[list[_WantedGroup]]:
    """At most `threads` runs of adjoining groups with about as many packets each."""
    shares: list[list[_WantedGroup]] = [[] for _ in range(threads)]
    ends = list(accumulate(max(1, group.last_packet + 1 - group.key.packet) for group in groups))
    for group, end in zip(groups, ends, strict=True):
        shares[(end - 1) * threads // ends[-1]].append(group)
    return [share for share in shares if share]


def _read_groups(indexed: IndexedVideo, groups: Sequence[_WantedGroup], pixels: _Pixels) -> set[int]:
    """The numbers of the frames found. A group in which anything looks wrong is left out: seeking may be what is wrong."""
    video, index, found = indexed.video, indexed.index, set[int]()
    reader, decoder = _PacketReader(indexed.container, indexed.stream), make_decoder(indexed.stream)
    for group in groups:
        times = {index.entries[number].time for number in group.wanted}
        try:
            decoder.flush_buffers()
            frames = decode_frames(_leave_out_unneeded(reader.read_group(group), times, indexed.stream), decoder)
            found |= _pick_frames(frames, [group], index, pixels, video)
        except (FFmpegError, _DamagedVideo) as cause:
            log.debug("%s: seeking failed (%s); read from the start instead", video.name, cause)
    return found


def _leave_out_unneeded(packets: Iterator[Packet], times: set[int], stream: VideoStream) -> Iterator[Packet]:
    """The same without those packets of H.264 that hold no frame of these times and that no other frame needs.

    FFmpeg's own way to skip these (skip_frame) also takes packets that it finds no image in for sound ones.
    """
    avcc = stream.codec_context.extradata or b""
    is_h264 = stream.codec_context.name == "h264"
    for packet in packets:
        if not is_h264 or not packet.size or packet.pts in times or is_needed_by_others(packet, avcc):
            yield packet


def _pick_frames(
    frames: Iterator[VideoFrame | FrameDamage],
    groups: Sequence[_WantedGroup],
    index: VideoIndex,
    pixels: _Pixels,
    video: VideoFile,
) -> set[int]:
    """Write the wanted frames; their numbers. Raises `_DamagedVideo` where something is wrong with what they are decoded from."""
    numbers = {index.entries[number].time: number for group in groups for number in group.wanted}
    found: set[int] = set()
    for frame in frames:
        if isinstance(frame, FrameDamage):
            for group in groups:
                if frame.time is None or group.key.time <= frame.time <= group.end:
                    at = frame.time or 0
                    goal = next((i for i in group.wanted if index.entries[i].decoded_to >= at), group.wanted[-1])
                    number = goal if frame.time is None else index.find_frame(frame.time)
                    needed = "" if number == goal else f", which frame {goal} is decoded from"
                    where = f"{index.describe_frame(number)}{needed}"
                    raise _DamagedVideo(f"{video.name}: damaged at {where} ({frame.reason}); {CURE}")
        elif frame.pts is not None:
            if frame.pts in numbers:
                pixels.write_frame(frame, numbers[frame.pts])
                found.add(numbers[frame.pts])
            if frame.pts >= groups[-1].end:
                break
    return found
