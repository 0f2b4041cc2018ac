"""A clip opened by PyAV: the container, its picture, its frames one after another; all errors name the file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import IO, Any, NoReturn

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from mmblocks.data.files import Slice, bytes_or_file, name_of
from mmblocks.errors import DataError
from mmblocks.shapes import Size

CURE = "fetch the file again, re-encode it, or drop the record."

# FFmpeg's names of containers that hold pictures themselves. Playlists (hls, concat, dash) are left out: they make
# FFmpeg open whatever file they name. Sound files are in, to be told that they have no picture.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,ivf,obu,h264,hevc,av1,vc1,m4v,mjpeg,"
    "nut,mxf,dv,rm,wtv,swf,apng,yuv4mpegpipe,3gp,h263,wav,mp3,flac,aac,ac3,aiff"
)

# A title that is not UTF-8 is no fault of the picture. PyAV 19 keeps its bytes by itself and knows the keyword no more.
_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if hasattr(InputContainer, "metadata_errors") else {}


class NoDecoder(DataError):
    """The FFmpeg that PyAV carries cannot decode the picture; another one may."""


class NotTheClip(DataError):
    """No fault of the clip's content: the file may not be opened, say."""


class NoSuchFrame(NotTheClip):
    """A frame was asked for that the clip does not have."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that can be opened again and again."""

    name: str
    content: bytes | Path

    @classmethod
    def of(cls, source: Any) -> Clip:
        name = name_of(source, "video")
        if isinstance(source, Slice):
            source = source.read()
        if not isinstance(source, str | os.PathLike | bytes):
            raise DataError(f"{name}: cannot be read as a clip; pass a path, bytes, a data: URI or a uint8 array.")
        return cls(name, bytes_or_file(source, "video"))

    def open(self) -> IO[bytes]:
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        try:
            return self.content.open("rb")
        except OSError as cause:
            raise NotTheClip(f"{self.name}: cannot be opened ({cause}); check its permissions.") from cause


@contextmanager
def opened(clip: Clip, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its picture. FFmpeg gets a file object and no leave to open any other."""
    with clip.open() as file:
        try:
            container = av.open(
                file,
                mode="r",
                options={"format_whitelist": _CONTAINERS, **options},
                io_open=_open_nothing,
                **_METADATA,
            )
        except Exception as cause:  # FFmpegError for the most part, but metadata may raise anything
            why = "a picture, a playlist or something unknown" if _is_unlisted(cause) else _reason(cause)
            raise DataError(
                f"{clip.name}: not a clip, or its end is missing ({why}); pass a video file (mp4, webm, mkv, avi, gif)."
            ) from cause
        with container:
            yield container, _picture(container, clip)


def _is_unlisted(cause: Exception) -> bool:
    return isinstance(cause, FFmpegError) and cause.errno == EINVAL


def _reason(cause: Exception) -> str:
    return getattr(cause, "strerror", None) or str(cause)  # FFmpeg's words, without its number and the file again


def _open_nothing(url: str, *_: Any) -> NoReturn:
    raise PermissionError(f"a clip may not open other files: {url}")


def _picture(container: InputContainer, clip: Clip) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise DataError(f"{clip.name}: there is no video stream, only {_kinds(container)}; pass a clip with a picture.")
    if stream.codec_context is None:  # FFmpeg has no decoder for it, or the header is damaged
        raise NoDecoder(f"{clip.name}: its picture is in a coding that cannot be decoded; re-encode it, to H.264 say.")
    stream.codec_context.thread_count = 1  # data workers are the threads
    return stream


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "a header"


def frames_of(container: InputContainer, stream: VideoStream, clip: Clip) -> Iterator[VideoFrame]:
    """Every frame in the order of decoding. Raises `DataError` with the frame at which decoding breaks off."""
    position = 0
    try:
        for frame in container.decode(stream):
            yield frame
            position += 1
    except FFmpegError as cause:
        breaks_off(clip, position, cause)


def breaks_off(clip: Clip, frame: int, cause: Exception) -> NoReturn:
    """Raise the `DataError` of a clip whose frames cannot be read from `frame` on."""
    raise DataError(f"{clip.name}: decoding breaks off at frame {frame} ({_reason(cause)}); {CURE}") from cause


def upright(frame: VideoFrame) -> np.ndarray:
    """(height, width, 3) uint8, turned as the file says it is to be shown."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=_quarter_turns(frame))


def size_of(frame: VideoFrame) -> Size:
    """Pixels of a frame as it is shown, after turning."""
    return Size(frame.width, frame.height) if _quarter_turns(frame) % 2 else Size(frame.height, frame.width)


def _quarter_turns(frame: VideoFrame) -> int:
    return round(frame.rotation / 90)
