"""Reading frames of videos, beside the readers of transformers.video_utils: 32 frames of 720p, of 10 seconds and 10 minutes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from PIL import Image
from transformers import video_utils

from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.geometry.frames import sample_frames
from mmblocks.shapes import Size
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, require_equal
from tests.bench.suites.timing import Way

NAME = "clips"
FPS = 30
LONG_AGO_NS = 10**18


@dataclass(frozen=True, slots=True)
class Clip:
    """A video of `seconds`. key_gap: frames from one key frame to the next. Long ones repeat a piece with little motion."""

    codec: str
    seconds: int
    key_gap: int

    @property
    def name(self) -> str:
        length = f"{self.seconds} s" if self.seconds < 60 else f"{self.seconds // 60} min"
        return f"{self.codec}, {length}, a key frame every {self.key_gap}"


CLIPS = (
    Clip("libx264", 10, 12),
    Clip("libx264", 10, 250),
    Clip("mpeg4", 10, 12),
    Clip("libx264", 600, 12),
    Clip("libx264", 600, 250),
)


def measure(run: Run) -> Iterator[Row]:
    """From a file that was not seen before to its shape and its frames, in one thread; transformers reads the frames alone."""
    size, count = (Size(48, 64), 4) if run.tiny else (Size(720, 1280), 32)
    for clip in (Clip("libx264", 2, 12), Clip("mpeg4", 2, 12)) if run.tiny else CLIPS:
        run.require_time(8 * clip.seconds**0.5, clip.name)
        with TemporaryDirectory() as folder:
            yield from _measure_clip(run, clip, record_clip(Path(folder) / "clip.mp4", clip, size), count)


def _measure_clip(run: Run, clip: Clip, path: Path, count: int) -> Iterator[Row]:
    length = read_video_shape(path).num_frames
    wanted = sample_frames(length, FPS, max_frames=count, fps_wanted=None, force=False).indices
    rounds = iter(range(10**6))

    def forget(_: int) -> None:
        """With another time of change it is another file, whose index is not known."""
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS + next(rounds)))

    def read(_: object) -> np.ndarray:
        read_video_shape(path)
        return read_frames(path, wanted, threads=1)

    frames = torch.from_numpy(read(None))
    peers = [Peer("as shipped", name, way) for name, way in list_peers(path, wanted).items()]
    error = require_equal(clip.name, frames, torch.from_numpy(list_peers(path, wanted)["PyAV"](0)))
    yield from compare_times(run, NAME, clip.name, f"{len(wanted)} frames", Way(read, forget), peers, error=error)


def list_peers(path: Path, wanted: tuple[int, ...]) -> dict[str, Callable[[int], Any]]:
    """Readers of transformers by what they decode with."""

    file: Any = os.fspath(path)  # their parameter is annotated as a Path, which decord refuses

    def choose(**_: object) -> np.ndarray:
        return np.array(wanted)

    return {
        "PyAV": lambda _: video_utils.read_video_pyav(file, choose)[0],
        "decord": lambda _: video_utils.read_video_decord(file, choose)[0],
        "torchcodec": lambda _: video_utils.read_video_torchcodec(file, choose)[0],
    }


def record_clip(path: Path, clip: Clip, size: Size) -> Path:
    """Write a video; of more than 10 seconds it is one piece that begins with a key frame, again and again."""
    length = clip.seconds * FPS
    piece = length if clip.seconds <= 10 else 20 * clip.key_gap if clip.key_gap < 100 else clip.key_gap
    with av.open(os.fspath(path), "w") as container:
        # x264 at its own rate (crf 23), the older MPEG-4 at a fixed one.
        options = {"preset": "veryfast"} if clip.codec == "libx264" else {"b": "4000000"}
        options |= {"g": str(clip.key_gap), "threads": "1", "sc_threshold": "0"}
        stream = container.add_stream(clip.codec, rate=FPS, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        pictures = draw_frames(piece, size, moves_all=piece == length)
        packets = [
            p for picture in pictures for p in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        ]
        packets += stream.encode()
        assert packets[0].time_base is not None
        unit = Fraction(1, FPS) / packets[0].time_base
        for number in range(length // piece):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts = (int((at or 0) + number * piece * unit) for at in (packet.pts, packet.dts))
                again.time_base, again.is_keyframe, again.stream = packet.time_base, packet.is_keyframe, stream
                container.mux(again)
    return path


def draw_frames(count: int, size: Size, *, moves_all: bool) -> Iterator[np.ndarray]:
    """A soft texture that drifts, or a square that crosses one that stands still: (height, width, 3) uint8."""
    noise = np.random.default_rng(0).integers(
        0, 256, (size.height // 8 + 20, (size.width + 4 * count) // 8, 3), np.uint8
    )
    large = Image.fromarray(noise).resize((noise.shape[1] * 8, noise.shape[0] * 8), Image.Resampling.BICUBIC)
    texture = np.asarray(large)
    for number in range(count):
        left, top = (4 * number, 2 * (number % 60)) if moves_all else (0, 0)
        picture = texture[top : top + size.height, left : left + size.width].copy()
        if not moves_all:
            side = size.height // 8
            at = number * (size.width - side) // count
            picture[side : 2 * side, at : at + side] = 255
        yield picture
