"""What is in a clip: how many frames, when each is shown, where decoding can start. Demuxed; one frame decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from av import Packet, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from mmblocks.data.video.clip import CURE, Clip, breaks_off, frames_of, opened, size_of
from mmblocks.errors import DataError
from mmblocks.shapes import Size


class Key(NamedTuple):
    """A key frame: decoding can begin here."""

    time: int  # when it is shown
    seek_to: int  # the time that a demuxer finds it by


@dataclass(frozen=True, slots=True)
class Index:
    """What demuxing tells. `times` (pts, ascending) number the frames; without them only decoding can."""

    container: str
    size: Size
    fps: float
    num_frames: int
    times: tuple[int, ...] | None
    keys: tuple[Key, ...]
    codec: str
    fresh_keys: bool  # nothing refers across a key frame

    def seek_point(self, frame: int) -> int:
        assert self.times is not None
        key = bisect_right([key.time for key in self.keys], self.times[frame]) - 1
        return self.keys[key].seek_to


class _Packet(NamedTuple):
    time: int | None
    dts: int | None
    is_key: bool
    is_fresh: bool  # a key frame that makes the decoder forget everything before
    is_shown: bool


def index_of(clip: Clip) -> Index:
    """Read a clip's packets without decoding them. Raises `DataError` for a file that holds no clip."""
    with opened(clip) as (container, stream):
        packets, first = _demux(container, stream, clip)
        container_name, codec, promised = container.format.name, stream.codec_context.name, stream.frames
        fps = float(stream.average_rate or stream.guessed_rate or 1)
        # AVI holds no times of showing, and those FFmpeg makes up are wrong for reordered H.264.
        guessed = container_name == "avi" and stream.codec_context.has_b_frames and _in_order(packets)
    if "mov" in container_name and promised > len(packets):
        _refuse_if_cut(clip, promised)
    if not packets:
        raise DataError(f"{clip.name}: the clip has no frames; drop the record or record the clip again.")
    keys = _keys(packets)
    times = None if guessed else _times(packets, keys)
    num_frames = len(times) if times else 0
    if not times or first is None:
        times, (num_frames, first) = None, _count_by_decoding(clip)
    fresh = times is not None and _are_keys_fresh(packets)
    return Index(container_name, size_of(first), fps, num_frames, times, tuple(keys), codec, fresh)


def _demux(container: InputContainer, stream: VideoStream, clip: Clip) -> tuple[list[_Packet], VideoFrame | None]:
    """All packets of the picture and, decoded from the first key frame on, the first frame."""
    packets: list[_Packet] = []
    first, decodable = None, False
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError(f"{clip.name}: cut off or damaged at frame {len(packets)}; {CURE}")
            if packet.size:
                packets.append(_packet(packet, stream))
            decodable = decodable or packet.is_keyframe
            if first is None and decodable:
                first = next(iter(packet.decode()), None)
    except FFmpegError as cause:
        breaks_off(clip, max(0, len(packets) - 1), cause)
    return packets, first


def _packet(packet: Packet[VideoStream], stream: VideoStream) -> _Packet:
    context = stream.codec_context
    # Edit lists hide frames, and VP8 has frames that only others refer to (RFC 6386, 9.1: show_frame).
    shown = not packet.is_discard and (context.name != "vp8" or bool(memoryview(packet)[0] & 0x10))
    fresh = packet.is_keyframe and (context.name != "h264" or _has_idr(bytes(packet), context.extradata or b""))
    return _Packet(packet.pts, packet.dts, packet.is_keyframe, fresh, shown)


def _has_idr(data: bytes, avcc: bytes) -> bool:
    """Whether an H.264 packet of mp4 or Matroska (units behind their lengths, ISO 14496-15) holds an IDR picture."""
    if len(avcc) < 5 or avcc[0] != 1:
        return False
    length_bytes, at = (avcc[4] & 3) + 1, 0
    while at + length_bytes < len(data):
        length = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if data[at] & 0x1F == 5:
            return True
        at += length
    return False


def _keys(packets: Sequence[_Packet]) -> list[Key]:
    # Matroska finds a key frame by when it is shown, mp4 by when it is decoded: the earlier never overshoots.
    return sorted(
        Key(p.time, p.time if p.dts is None else min(p.time, p.dts)) for p in packets if p.is_key and p.time is not None
    )


def _times(packets: Sequence[_Packet], keys: Sequence[Key]) -> tuple[int, ...] | None:
    """When each frame is shown, or None where packets do not tell. What precedes the first key cannot be decoded."""
    if not keys or any(packet.time is None for packet in packets):
        return None
    times = sorted(p.time for p in packets if p.is_shown and p.time is not None and p.time >= keys[0].time)
    return tuple(times) if len(set(times)) == len(times) else None


def _in_order(packets: Sequence[_Packet]) -> bool:
    times = [packet.time for packet in packets if packet.time is not None]
    return times == sorted(times)


def _are_keys_fresh(packets: Sequence[_Packet]) -> bool:
    """Whether every key frame starts anew, and no frame behind one in the file is shown before it."""
    key_time = None
    for packet in packets:
        if packet.is_key:
            key_time = packet.time if packet.is_fresh else None
        if key_time is None or packet.time is None or packet.time < key_time:
            return False
    return True


def _refuse_if_cut(clip: Clip, promised: int) -> None:
    """An edit list may leave frames out; read without it, every promised frame is there unless the file is cut."""
    with opened(clip, ignore_editlist="1") as (container, stream):
        packets, _ = _demux(container, stream, clip)
    if promised > len(packets):
        raise DataError(
            f"{clip.name}: cut off, its header promises {promised} frames and {len(packets)} are there; {CURE}"
        )


def _count_by_decoding(clip: Clip) -> tuple[int, VideoFrame]:
    first, num_frames = None, 0
    with opened(clip) as (container, stream):
        for frame in frames_of(container, stream, clip):
            first, num_frames = first or frame, num_frames + 1
    if first is None:
        raise DataError(f"{clip.name}: no frame of the clip can be decoded; {CURE}")
    return num_frames, first
