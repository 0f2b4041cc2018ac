"""A video opened by PyAV: the container, its video stream, its frames one after another; all errors name the file."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import av
import numpy as np
from av import Packet, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mmblocks.data.media.files import FileSlice, describe_source, resolve_source
from mmblocks.errors import DataError
from mmblocks.shapes import Size

CURE = "fetch the file again, re-encode it, or drop the record."

# What a decoder looks for. "buffer" (more or less bits than the images take) finds damage in WMV; "explode" turns what
# the JPEG decoder hides into errors. H.264 and HEVC go without "explode": it refuses sound images for a faulty message
# beside them (SEI). "bitstream" is left out for it refuses the stuffing of MPEG-1 and 2 at a constant bit rate,
# "aggressive" for it refuses Xvid.
_CHECKS = "crccheck+buffer"
_CHECKS_ALONE = ("h264", "hevc")

# FFmpeg's names of containers that hold images themselves. Playlists (hls, concat, dash) are left out: they make
# FFmpeg open whatever file they name. Sound files are in: the error then says that they have no image.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,ivf,obu,h264,hevc,av1,vc1,m4v,mjpeg,"
    "nut,mxf,dv,rm,wtv,swf,apng,yuv4mpegpipe,3gp,h263,wav,mp3,flac,aac,ac3,aiff"
)

# A title that is not UTF-8 is no fault of the image. PyAV 19 keeps its bytes by itself and knows the keyword no more.
_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if hasattr(InputContainer, "metadata_errors") else {}

# From PyAV 16 on a conversion to RGB starts a thread per core; data workers are the threads. PyAV 15 knows the word not.
_CONVERSION: dict[str, Any] = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}

_SETTLED_S = 2.0
"""How long a file must be unchanged for its time of change to tell its content: clocks of file systems are coarse."""


class NoDecoder(DataError):
    """The FFmpeg that PyAV carries cannot decode the image; another one may."""


class NotVideoFault(DataError):
    """No fault of the video's content: the file may not be opened, say."""


class NoSuchFrame(NotVideoFault):
    """A frame was asked for that the video does not have."""


class FileState(NamedTuple):
    """What tells whether a part of a file is the one of another time."""

    path: Path
    offset: int
    size: int
    inode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video that can be opened again and again. state: None where it is not in a file, or in one that just changed."""

    name: str
    content: bytes | Path
    state: FileState | None = None

    @classmethod
    def from_source(cls, source: object) -> VideoFile:
        name = describe_source(source, "video")
        if isinstance(source, FileSlice):
            state = _read_state(source.path, source.offset, source.size)
            return cls(name, source.read(), state)
        if not isinstance(source, str | os.PathLike | bytes):
            raise DataError(f"{name}: cannot be read as a video; pass a path, bytes, a data: URI or a uint8 array.")
        content = resolve_source(source, "video")
        return cls(name, content, None if isinstance(content, bytes) else _read_state(content))

    def open(self) -> IO[bytes]:
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        try:
            return self.content.open("rb")
        except OSError as cause:
            raise NotVideoFault(f"{self.name}: cannot be opened ({cause}); check its permissions.") from cause


def _read_state(path: Path, offset: int = 0, size: int | None = None) -> FileState | None:
    try:
        found = path.stat()
    except OSError:  # whoever opens it says so
        return None
    if time.time() - found.st_mtime < _SETTLED_S:
        return None
    return FileState(path.absolute(), offset, found.st_size if size is None else size, found.st_ino, found.st_mtime_ns)


@contextmanager
def open_video(video: VideoFile, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream. FFmpeg gets a file object and may not open any other."""
    with video.open() as file:
        try:
            container = av.open(
                file,
                mode="r",
                # Not `options`: PyAV 15 crashes on these where streams show up late, as in FLV and MPEG programs.
                container_options={"format_whitelist": _CONTAINERS, **options},
                io_open=_refuse_open,
                **_METADATA,
            )
        except Exception as cause:  # FFmpegError for the most part, but metadata may raise anything
            is_unlisted = isinstance(cause, FFmpegError) and cause.errno == EINVAL
            why = "an image, a playlist or something unknown" if is_unlisted else summarize_error(cause)
            raise DataError(
                f"{video.name}: not a video, or its end is missing ({why}); pass a video file (mp4, webm, mkv, avi, gif)."
            ) from cause
        with container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "a header"
                raise DataError(f"{video.name}: there is no video stream, only {kinds}; pass a video with an image.")
            if stream.codec_context is None:  # FFmpeg has no decoder for it, or the header is damaged
                raise NoDecoder(
                    f"{video.name}: its image is in a coding that cannot be decoded; re-encode it, to H.264 say."
                )
            _configure_decoder(stream.codec_context)
            yield container, stream


def summarize_error(cause: Exception) -> str:
    return getattr(cause, "strerror", None) or str(cause)  # FFmpeg's words, without its number and the file again


def _refuse_open(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"a video may not open other files: {url}")


def _configure_decoder(context: VideoCodecContext) -> None:
    context.thread_count = 1  # data workers are the threads
    context.options = {"err_detect": _CHECKS if context.name in _CHECKS_ALONE else f"{_CHECKS}+explode"}


def make_decoder(stream: VideoStream) -> VideoCodecContext:
    """What decodes a stream: libvpx for VP9, as far as it reads it. FFmpeg's own decoder takes any damage for images."""
    context = stream.codec_context
    if context.name != "vp9" or context.format is None or any(part.bits != 8 for part in context.format.components):
        return context
    try:
        decoder = VideoCodecContext.create("libvpx-vp9", "r")
    except ValueError:  # this PyAV was built without libvpx
        return context
    _configure_decoder(decoder)
    return decoder


class FrameDamage(NamedTuple):
    """In place of a frame: it was not decoded rightly. `time` is the packet's or the frame's, where there is one."""

    time: int | None
    reason: str


def decode_frames(packets: Iterable[Packet], decoder: VideoCodecContext) -> Iterator[VideoFrame | FrameDamage]:
    """Every frame of these packets in the order of showing; those that FFmpeg refuses or flags are given as damage.

    The last packet is empty, as that of `InputContainer.demux`: the decoder then gives what it holds back.
    """
    for packet in packets:
        try:
            frames = decoder.decode(packet if packet.size else None)
        except FFmpegError as cause:
            yield FrameDamage(packet.pts, summarize_error(cause))
            continue
        for frame in frames:
            yield FrameDamage(frame.pts, "FFmpeg finds it corrupt") if frame.is_corrupt else frame


def format_moment(frame: int, seconds: float | None) -> str:
    """A frame for people: by its number, and when it is shown after the first one."""
    return f"frame {frame}" if seconds is None else f"frame {frame} ({seconds:.2f} s)"


def to_upright(frame: VideoFrame, quarter_turns: int) -> np.ndarray:
    """(height, width, 3) uint8, turned as the file says it is to be shown."""
    return np.rot90(frame.to_ndarray(format="rgb24", **_CONVERSION), k=quarter_turns)


def compute_frame_size(frame: VideoFrame, quarter_turns: int) -> Size:
    """Pixels of a frame as it is shown, after turning."""
    return Size(frame.width, frame.height) if quarter_turns % 2 else Size(frame.height, frame.width)


def count_quarter_turns(frame: VideoFrame) -> int:
    """How a file says its frames are to be turned, counter-clockwise."""
    return round(frame.rotation / 90)
