"""The packets of a video stream: when each is shown and decoded, and what it is to the decoder."""

from collections.abc import Sequence
from typing import NamedTuple

from av import Packet, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from mmblocks.data.video.container import CURE, VideoFile, format_moment, summarize_error
from mmblocks.data.video.gif import find_gif_fault
from mmblocks.errors import DataError


class PacketFacts(NamedTuple):
    """One packet, in units of its stream's time base."""

    time: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_fresh: bool  # a key frame that makes the decoder forget everything before
    is_shown: bool


def demux_packets(
    container: InputContainer, stream: VideoStream, video: VideoFile
) -> tuple[list[PacketFacts], VideoFrame | None]:
    """All packets of the video stream and, decoded from the first key frame on, the first frame."""
    packets: list[PacketFacts] = []
    first, decodable = None, False
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                where = _format_packet_moment(packets, stream, len(packets))
                raise DataError(f"{video.name}: cut off or damaged at {where}; {CURE}")
            if packet.size:
                codec, extradata = stream.codec_context.name, stream.codec_context.extradata or b""
                # Edit lists hide frames, and VP8 has frames that only others refer to (RFC 6386, 9.1: show_frame).
                shown = not packet.is_discard and (codec != "vp8" or bool(memoryview(packet)[0] & 0x10))
                fresh = packet.is_keyframe and (codec != "h264" or _has_idr(bytes(packet), extradata))
                times = packet.pts, packet.dts, packet.duration or 0
                packets.append(PacketFacts(*times, packet.is_keyframe, fresh, shown))
                fault = find_gif_fault(bytes(packet)) if codec == "gif" else None
                if fault:
                    where = _format_packet_moment(packets, stream, len(packets) - 1)
                    raise DataError(f"{video.name}: cut off or damaged at {where}: {fault}; {CURE}")
            decodable = decodable or packet.is_keyframe
            if first is None and decodable:
                first = _decode_frame(packet, stream.codec_context)
    except FFmpegError as cause:
        where = _format_packet_moment(packets, stream, max(0, len(packets) - 1))
        raise DataError(f"{video.name}: decoding breaks off at {where} ({summarize_error(cause)}); {CURE}") from cause
    return packets, first


def _decode_frame(packet: Packet, decoder: VideoCodecContext) -> VideoFrame | None:
    """The next frame. A decoder holds a key frame back, until it knows what is shown before, or there is nothing more."""
    frames = decoder.decode(packet if packet.size else None)
    if not frames and packet.size and packet.is_keyframe:
        frames = decoder.decode(None)
        decoder.flush_buffers()
        if not frames:  # the image is not whole without the next packet
            frames = decoder.decode(packet)
    return next(iter(frames), None)


def _format_packet_moment(packets: Sequence[PacketFacts], stream: VideoStream, number: int) -> str:
    """Where the last of these packets is, which is the one of this number or the one before it."""
    times = [packet.time for packet in packets if packet.time is not None]
    unit = stream.time_base
    return format_moment(number, float((times[-1] - min(times)) * unit) if times and unit else None)


def _has_idr(data: bytes, avcc: bytes) -> bool:
    """Whether an H.264 packet of mp4 or Matroska holds an IDR image."""
    return any(header & 0x1F == 5 for header in _list_unit_headers(data, avcc))


def is_needed_by_others(packet: Packet, avcc: bytes) -> bool:
    """Whether other frames may be predicted from an H.264 packet; True wherever the packet does not rule it out.

    It rules it out where all its slices are of images that are no reference (nal_ref_idc is 0, ITU-T H.264 7.4.1) and
    nothing but remarks (SEI), delimiters and filling stands beside them.
    """
    headers = _list_unit_headers(bytes(packet), avcc)
    has_slice = any(header & 0x1F == 1 for header in headers)
    return not has_slice or any(header & 0x1F not in (1, 6, 9, 12) or header & 0x60 for header in headers)


def _list_unit_headers(data: bytes, avcc: bytes) -> list[int]:
    """The first byte of every unit of an H.264 packet of mp4 or Matroska (ISO 14496-15); none for other packets.

    avcc: the decoder's configuration, which tells how many bytes the length before each unit has.
    """
    if len(avcc) < 5 or avcc[0] != 1:
        return []
    length_bytes, at, headers = (avcc[4] & 3) + 1, 0, []
    while at + length_bytes < len(data):
        length = int.from_bytes(data[at : at + length_bytes], "big")
        headers.append(data[at + length_bytes])
        at += length_bytes + length
    return headers if at == len(data) else []


def find_last_duration(packets: Sequence[PacketFacts], times: Sequence[int]) -> float:
    """For how long the frame with the last of these times is shown; 0 where the packets do not say.

    How long a packet lasts is the time up to the next one that is decoded. Where frames are reordered, that is not what
    is shown next: a long time is believed only of the packet that is decoded last.
    """
    last, final = next(packet for packet in packets if packet.time == times[-1]), packets[-1]
    if last is final or final.dts is None:
        return last.duration
    usual = (times[-1] - times[0]) / max(1, len(times) - 1)
    return max(min(last.duration, usual), final.dts + final.duration - times[-1])


def is_in_order(packets: Sequence[PacketFacts]) -> bool:
    """Whether no packet is decoded before the one in front of it, as where recordings were put end to end."""
    dts = [packet.dts for packet in packets if packet.dts is not None]
    return dts == sorted(dts)


def has_fresh_keys(packets: Sequence[PacketFacts]) -> bool:
    """Whether every key frame starts anew, and no frame behind one in the file is shown before it."""
    key_time = None
    for packet in packets:
        if packet.is_key:
            key_time = packet.time if packet.is_fresh else None
        if key_time is None or packet.time is None or packet.time < key_time:
            return False
    return True
