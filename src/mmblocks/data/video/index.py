"""What is in a video: how many frames, when each is shown, where decoding can start. Demuxed; one frame decoded."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from mmblocks.data.video.container import (
    CURE,
    FileState,
    FrameDamage,
    VideoFile,
    compute_frame_size,
    count_quarter_turns,
    decode_frames,
    format_moment,
    make_decoder,
    open_video,
)
from mmblocks.data.video.frame_times import FramePace, compute_pace
from mmblocks.data.video.packets import PacketFacts, demux_packets, find_last_duration, has_fresh_keys, is_in_order
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape

# Demuxers that find a key frame by when it is shown. The others look for when it is decoded; the earlier of both times
# never overshoots.
_SEEK_BY_SHOWING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class KeyFrame(NamedTuple):
    """A key frame: decoding can begin here."""

    time: int  # when it is shown
    seek_to: int  # the time that a demuxer finds it by
    packet: int  # its number in the order of decoding


class FrameEntry(NamedTuple):
    """A frame of the video.

    decoded_to: the latest time of all that a decoder gets from the frame's key frame up to the frame itself. What is
    shown later than the frame may be what it is predicted from. packet: its number in the order of decoding.
    """

    time: int
    decoded_to: int
    packet: int


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """The facts from demuxing. `entries` (times ascending) number the frames; where it is empty, only decoding can."""

    container: str
    codec: str
    size: Size
    quarter_turns: int
    num_frames: int
    pace: FramePace
    entries: tuple[FrameEntry, ...]
    keys: tuple[KeyFrame, ...]
    fresh_keys: bool  # nothing refers across a key frame

    @property
    def shape(self) -> VisualShape:
        return VisualShape("video", self.size, self.num_frames, self.pace.fps, times_s=self.pace.times_s)

    def find_key_frame(self, frame: int) -> KeyFrame:
        """The key frame that decoding of a frame begins at."""
        return self.keys[bisect_right(self.keys, self.entries[frame].time, key=lambda key: key.time) - 1]

    def find_frame(self, time: int) -> int:
        """The frame that is shown at a time."""
        return max(0, bisect_right(self.entries, time, key=lambda entry: entry.time) - 1)

    def describe_frame(self, frame: int) -> str:
        """A frame for people, by its number and its time."""
        return format_moment(frame, self.shape.compute_frame_time_s(frame))


@dataclass(frozen=True, slots=True)
class IndexedVideo:
    """A video that is open, and its index."""

    video: VideoFile
    index: VideoIndex
    container: InputContainer
    stream: VideoStream


_recent: deque[tuple[FileState, VideoIndex]] = deque(maxlen=16)
"""Indexes of the last videos in files: a sample is planned from an index, and right after that its frames are read."""


def read_index(video: VideoFile) -> VideoIndex:
    """Read a video's packets without decoding them. Raises `DataError` for a file that holds no video."""
    if (known := _recall_index(video)) is not None:
        return known
    with open_indexed(video) as indexed:
        return indexed.index


@contextmanager
def open_indexed(video: VideoFile) -> Iterator[IndexedVideo]:
    """Open a video once for its index, where that is not known, and for its frames. Raises as `read_index`."""
    with open_video(video) as (container, stream):
        index = _recall_index(video)
        if index is None:
            index = _make_index(video, container, stream)
            if video.state is not None:
                _recent.append((video.state, index))
        yield IndexedVideo(video, index, container, stream)


def _recall_index(video: VideoFile) -> VideoIndex | None:
    if video.state is None:
        return None
    return next((index for state, index in tuple(_recent) if state == video.state), None)


def _make_index(video: VideoFile, container: InputContainer, stream: VideoStream) -> VideoIndex:
    packets, first = demux_packets(container, stream, video)
    container_name, codec, promised = container.format.name, stream.codec_context.name, stream.frames
    header_fps, unit = float(stream.average_rate or stream.guessed_rate or 1), stream.time_base or Fraction(1)
    # AVI holds no times of showing, and those FFmpeg makes up are wrong for reordered H.264 and packed Xvid.
    guessed = container_name == "avi" and stream.codec_context.has_b_frames
    if "mov" in container_name and promised > len(packets):
        # An edit list may leave frames out; read without it, every promised frame is there unless the file is cut.
        with open_video(video, ignore_editlist="1") as whole:
            num_packets = len(demux_packets(*whole, video)[0])
        if promised > num_packets:
            raise DataError(
                f"{video.name}: cut off, its header promises {promised} frames and {num_packets} are there; {CURE}"
            )
    if not packets:
        raise DataError(f"{video.name}: the video has no frames; drop the record or record the video again.")
    by_showing = container_name in _SEEK_BY_SHOWING
    keys = sorted(
        KeyFrame(p.time, p.time if by_showing or p.dts is None else min(p.time, p.dts), number)
        for number, p in enumerate(packets)
        if p.is_key and p.time is not None
    )
    entries = () if guessed or first is None else _list_entries(packets, keys)
    if entries:
        times = [entry.time for entry in entries]
        num_frames, pace = len(times), compute_pace(times, find_last_duration(packets, times), unit, header_fps)
    else:
        first, counted = _decode_all_frames(video, header_fps)
        # The frames are in the order in which they come out; their times may repeat or step back for a moment.
        times = [time for time in counted if time is not None]
        if guessed or len(times) < len(counted) or times[-1] < max(times):
            num_frames, pace = len(counted), FramePace(header_fps, None)
        else:
            num_frames, pace = len(counted), compute_pace(list(accumulate(times, max)), 0, unit, header_fps)
    assert first is not None
    turns, fresh = count_quarter_turns(first), bool(entries) and has_fresh_keys(packets)
    size = compute_frame_size(first, turns)
    return VideoIndex(container_name, codec, size, turns, num_frames, pace, entries, tuple(keys), fresh)


def _list_entries(packets: Sequence[PacketFacts], keys: Sequence[KeyFrame]) -> tuple[FrameEntry, ...]:
    """The frames, or none where the packets do not determine them. Frames before the first key frame cannot be decoded."""
    if not keys or not is_in_order(packets):
        return ()
    entries: list[FrameEntry] = []
    decoded_to = keys[0].time
    for number, packet in enumerate(packets):
        if packet.time is None:
            return ()
        decoded_to = packet.time if packet.is_key else max(decoded_to, packet.time)
        if packet.is_shown and packet.time >= keys[0].time:
            entries.append(FrameEntry(packet.time, decoded_to, number))
    entries.sort()
    return () if len({entry.time for entry in entries}) < len(entries) else tuple(entries)


def _decode_all_frames(video: VideoFile, fps: float) -> tuple[VideoFrame, list[int | None]]:
    """The first frame, and the times of all as far as they have some."""
    first, times = None, []
    with open_video(video) as (container, stream):
        for frame in decode_frames(container.demux(stream), make_decoder(stream)):
            if isinstance(frame, FrameDamage):
                where = format_moment(len(times), len(times) / fps)
                raise DataError(f"{video.name}: damaged at {where} ({frame.reason}); {CURE}")
            first = first or frame
            times.append(frame.pts)
    if first is None:
        raise DataError(f"{video.name}: no frame of the video can be decoded; {CURE}")
    return first, times
