"""Clips: their shape without decoding them, and the frames a plan asks for. The one door to decord and PyAV.

PyAV judges every clip and counts its frames; decord, where it is installed, then decodes the containers in which it
was found to hit the right frames. PyAV decodes the rest. Both give the same pixels for 8-bit clips of even size.
Clips are opened per call and nothing is kept: open readers do not survive the fork of a data worker.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, NamedTuple, NoReturn, get_args

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from mmblocks.data.files import bytes_or_file, name_of
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape

log = logging.getLogger(__name__)

VideoSource = str | os.PathLike[str] | bytes | np.ndarray
Reader = Literal["auto", "decord", "pyav"]

# FFmpeg's names of containers that hold pictures themselves. Playlists (hls, concat, dash) are left out: they make
# FFmpeg open whatever file they name. Sound files are in, to be told that they have no picture.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,ivf,obu,h264,hevc,av1,vc1,m4v,mjpeg,"
    "nut,mxf,dv,rm,wtv,swf,apng,yuv4mpegpipe,3gp,h263,wav,mp3,flac,aac,ac3,aiff"
)
# decord 0.6 seeks MPEG-TS a whole group of pictures too far and refuses GIF. In these it finds the asked frames, unless
# frames refer across key frames (open groups of pictures, the habit of x265 and MPEG-4): then it is off by some frames.
_DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")


def video_shape(source: VideoSource) -> VisualShape:
    """Size (upright), number of frames and average frames per second of a clip: demuxed, and one frame decoded.

    An array (frames, height, width, 3) of uint8 is a clip too; it has no clock, so its fps is 1.
    """
    if isinstance(source, np.ndarray):
        num_frames, height, width, _ = _checked(source).shape
        return VisualShape("video", Size(height, width), num_frames)
    index = _index(_Clip.of(source))
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
    clip = _Clip.of(source)
    index = _index(clip)
    _check_range(indices, index.num_frames, clip.name)
    if not indices:
        return np.empty((0, *index.size, 3), dtype=np.uint8)
    wanted = sorted(set(indices))
    frames = _decode(clip, index, wanted, reader)
    return frames[np.searchsorted(wanted, indices)]


def _decode(clip: _Clip, index: _Index, wanted: Sequence[int], reader: Reader) -> np.ndarray:
    if reader != "pyav":
        try:
            return _read_decord(clip, index, wanted)
        except _DecordRefuses as cause:
            if reader == "decord":
                raise DataError(f"{clip.name}: decord cannot read this clip ({cause}); use reader='pyav'.") from cause
            log.debug("%s: read by PyAV; decord: %s", clip.name, cause)
    return _read_pyav(clip, index, wanted)


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


@dataclass(frozen=True, slots=True)
class _Clip:
    """A clip that can be opened again and again."""

    name: str
    content: bytes | Path

    @classmethod
    def of(cls, source: Any) -> _Clip:
        name = name_of(source, "video")
        if not isinstance(source, str | os.PathLike | bytes):
            raise DataError(f"{name}: cannot be read as a clip; pass a path, bytes, a data: URI or a uint8 array.")
        return cls(name, bytes_or_file(source, "video"))

    def open(self) -> IO[bytes]:
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        try:
            return self.content.open("rb")
        except OSError as cause:
            raise DataError(f"{self.name}: cannot be opened ({cause}); check its permissions.") from cause


# --- what is in a clip -------------------------------------------------------------------------------------------------


class _Key(NamedTuple):
    time: int  # when it is shown
    seek_to: int  # the time that a demuxer finds it by


@dataclass(frozen=True, slots=True)
class _Index:
    """What demuxing tells. `times` (pts, ascending) number the frames; without them only decoding can."""

    container: str
    size: Size
    fps: float
    num_frames: int
    times: tuple[int, ...] | None
    keys: tuple[_Key, ...]
    closed: bool  # no frame is shown before the key frame that it follows in the file

    def seek_point(self, frame: int) -> int:
        assert self.times is not None
        key = bisect_right([key.time for key in self.keys], self.times[frame]) - 1
        return self.keys[key].seek_to


class _Packet(NamedTuple):
    time: int | None
    seek_to: int | None
    is_key: bool
    is_shown: bool


def _index(clip: _Clip) -> _Index:
    with _opened(clip) as (container, stream):
        packets, first = _demux(container, stream, clip)
        container_name, promised = container.format.name, stream.frames
        fps = float(stream.average_rate or stream.guessed_rate or 1)
        # AVI holds no times of showing, and those FFmpeg makes up are wrong for reordered H.264.
        guessed = container_name == "avi" and stream.codec_context.has_b_frames and _in_order(packets)
    if "mov" in container_name and promised > len(packets):
        _refuse_if_cut(clip, promised)
    if not packets:
        raise DataError(f"{clip.name}: the clip has no frames; drop the record or record the clip again.")
    keys = sorted(_Key(p.time, min(p.time, p.seek_to or p.time)) for p in packets if p.is_key and p.time is not None)
    times = None if guessed else _times(packets, keys)
    num_frames = len(times) if times else 0
    if not times or first is None:
        times, (num_frames, first) = None, _count_by_decoding(clip)
    return _Index(container_name, _size(first), fps, num_frames, times, tuple(keys), _is_closed(packets))


def _demux(container: InputContainer, stream: VideoStream, clip: _Clip) -> tuple[list[_Packet], av.VideoFrame | None]:
    """All packets of the picture and, decoded from the first key frame on, the first frame."""
    packets: list[_Packet] = []
    first, decodable = None, False
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError(f"{clip.name}: cut off or damaged at frame {len(packets)}; {_CURE}")
            if packet.size:
                packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, _is_shown(packet, stream)))
            decodable = decodable or packet.is_keyframe
            if first is None and decodable:
                first = next(iter(packet.decode()), None)
    except av.error.FFmpegError as cause:
        _breaks_off(clip, max(0, len(packets) - 1), cause)
    return packets, first


def _is_shown(packet: av.Packet[VideoStream], stream: VideoStream) -> bool:
    """Whether a packet becomes a frame: edit lists hide some, and VP8 has frames that only others refer to."""
    hidden = stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10  # RFC 6386, 9.1: show_frame
    return not (packet.is_discard or hidden)


def _times(packets: Sequence[_Packet], keys: Sequence[_Key]) -> tuple[int, ...] | None:
    """When each frame is shown, or None where packets do not tell. What precedes the first key cannot be decoded."""
    if not keys or any(packet.time is None for packet in packets):
        return None
    times = sorted(p.time for p in packets if p.is_shown and p.time is not None and p.time >= keys[0].time)
    return tuple(times) if len(set(times)) == len(times) else None


def _in_order(packets: Sequence[_Packet]) -> bool:
    times = [packet.time for packet in packets if packet.time is not None]
    return times == sorted(times)


def _is_closed(packets: Sequence[_Packet]) -> bool:
    key_time = None
    for packet in packets:
        if packet.time is None:
            return False
        if packet.is_key:
            key_time = packet.time
        if key_time is None or packet.time < key_time:
            return False
    return True


def _refuse_if_cut(clip: _Clip, promised: int) -> None:
    """An edit list may leave frames out; read without it, every promised frame is there unless the file is cut."""
    with _opened(clip, ignore_editlist="1") as (container, stream):
        packets, _ = _demux(container, stream, clip)
    if promised > len(packets):
        raise DataError(
            f"{clip.name}: cut off, its header promises {promised} frames and {len(packets)} are there; {_CURE}"
        )


def _count_by_decoding(clip: _Clip) -> tuple[int, av.VideoFrame]:
    first, num_frames = None, 0
    with _opened(clip) as (container, stream):
        for frame in _frames(container, stream, clip):
            first, num_frames = first or frame, num_frames + 1
    if first is None:
        raise DataError(f"{clip.name}: no frame of the clip can be decoded; {_CURE}")
    return num_frames, first


# --- decord ------------------------------------------------------------------------------------------------------------


class _DecordRefuses(Exception):
    """decord is missing, or the clip is not for it. Never leaves this file."""


@functools.cache
def _decord() -> ModuleType | None:
    if importlib.util.find_spec("decord") is None:
        return None
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its FFmpeg writes to stderr what it raises anyway
    return decord


def _read_decord(clip: _Clip, index: _Index, wanted: Sequence[int]) -> np.ndarray:
    decord = _decord()
    if decord is None:
        raise _DecordRefuses("decord is not installed")
    if index.container not in _DECORD_CONTAINERS:
        raise _DecordRefuses(f"it does not find the right frames of {index.container}")
    if not index.closed:
        raise _DecordRefuses("it does not find the right frames of open groups of pictures")
    content = io.BytesIO(clip.content) if isinstance(clip.content, bytes) else os.fspath(clip.content)
    try:
        # More threads break on valid VP9. A fault_tol above zero turns silent repeats of damaged frames into errors.
        clip_reader = decord.VideoReader(content, num_threads=1, fault_tol=1e-9)
        num_frames = len(clip_reader)
        batch = clip_reader.get_batch(list(wanted)) if num_frames == index.num_frames else None
    except Exception as cause:  # DECORDError, RuntimeError, AssertionError, IndexError: all mean no
        raise _DecordRefuses(str(cause).splitlines()[0] if str(cause) else repr(cause)) from cause
    if batch is None:
        raise _DecordRefuses(f"it counts {num_frames} frames, there are {index.num_frames}")
    frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # decord's bridge may be torch's
    if frames.shape[1:3] != index.size:
        raise _DecordRefuses(f"its frames are {frames.shape[1]}x{frames.shape[2]} instead of {index.size}")
    return frames


# --- PyAV --------------------------------------------------------------------------------------------------------------

_CURE = "fetch the file again, re-encode it, or drop the record."


def _read_pyav(clip: _Clip, index: _Index, wanted: Sequence[int]) -> np.ndarray:
    found = _read_by_seeking(clip, index, wanted) if index.times else {}
    if len(found) < len(wanted):
        found = _read_from_the_start(clip, index, wanted)
    return np.stack([found[i] for i in wanted])


def _read_by_seeking(clip: _Clip, index: _Index, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """One seek per group of pictures. What is not found this way is simply missing from the result."""
    assert index.times is not None
    numbers = {time: number for number, time in enumerate(index.times)}
    found: dict[int, np.ndarray] = {}
    with _opened(clip) as (container, stream):
        try:
            for seek_point, group in groupby(wanted, key=index.seek_point):
                group = list(group)
                container.seek(seek_point, stream=stream)
                until = index.times[group[-1]]
                found |= _pick(_until(container.decode(stream), until), numbers, group, index, clip)
        except av.error.FFmpegError as cause:
            log.debug("%s: seeking failed (%s); read from the start instead", clip.name, cause)
    return found


def _read_from_the_start(clip: _Clip, index: _Index, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    numbers = {time: number for number, time in enumerate(index.times)} if index.times else None
    with _opened(clip) as (container, stream):
        frames = _frames(container, stream, clip)
        found = _pick(frames, numbers, wanted, index, clip)
    for number in wanted:
        if number not in found:
            raise DataError(f"{clip.name}: frame {number} of {index.num_frames} cannot be decoded; {_CURE}")
    return found


def _pick(
    frames: Iterator[av.VideoFrame],
    numbers: Mapping[int, int] | None,
    wanted: Sequence[int],
    index: _Index,
    clip: _Clip,
) -> dict[int, np.ndarray]:
    """The wanted frames by number; `numbers` maps times to numbers, without it frames are counted."""
    missing, found = set(wanted), {}
    for position, frame in enumerate(frames):
        number = position if numbers is None else numbers.get(frame.pts, -1)
        if number in missing and not frame.is_corrupt:
            if _size(frame) != index.size:
                raise DataError(f"{clip.name}: frame {number} is {_size(frame)}, frame 0 is {index.size}; {_CURE}")
            found[number] = _upright(frame)
            missing.discard(number)
        if not missing:
            break
    return found


def _until(frames: Iterator[av.VideoFrame], time: int) -> Iterator[av.VideoFrame]:
    for frame in frames:
        yield frame
        if frame.pts is None or frame.pts >= time:
            return


def _frames(container: InputContainer, stream: VideoStream, clip: _Clip) -> Iterator[av.VideoFrame]:
    position = 0
    try:
        for frame in container.decode(stream):
            yield frame
            position += 1
    except av.error.FFmpegError as cause:
        _breaks_off(clip, position, cause)


def _breaks_off(clip: _Clip, frame: int, cause: Exception) -> NoReturn:
    raise DataError(f"{clip.name}: decoding breaks off at frame {frame} ({cause}); {_CURE}") from cause


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), k=_quarter_turns(frame))


def _size(frame: av.VideoFrame) -> Size:
    return Size(frame.width, frame.height) if _quarter_turns(frame) % 2 else Size(frame.height, frame.width)


def _quarter_turns(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90)


@contextmanager
def _opened(clip: _Clip, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its picture. FFmpeg gets a file object and no leave to open any other."""
    with clip.open() as file:
        try:
            container = av.open(
                file,
                mode="r",
                options={"format_whitelist": _CONTAINERS, **options},
                metadata_errors="ignore",
                io_open=_open_nothing,
            )
        except Exception as cause:  # FFmpegError for the most part, but metadata may raise anything
            raise DataError(
                f"{clip.name}: not a clip, or its end is missing ({cause}); pass a video file (mp4, webm, mkv, avi, gif)."
            ) from cause
        with container:
            yield container, _picture(container, clip)


def _open_nothing(url: str, *_: Any) -> NoReturn:
    raise PermissionError(f"a clip may not open other files: {url}")


def _picture(container: InputContainer, clip: _Clip) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise DataError(f"{clip.name}: there is no video stream, only {_kinds(container)}; pass a clip with a picture.")
    stream.codec_context.thread_count = 1  # data workers are the threads
    return stream


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "a header"
