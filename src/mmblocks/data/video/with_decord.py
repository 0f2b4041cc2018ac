"""Frames by decord, of videos where it was found to give the right ones.

It never says what FFmpeg finds corrupt: of a damaged video it gives whatever was decoded.
"""

import functools
import importlib.util
import io
import os
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from mmblocks.data.video.container import VideoFile
from mmblocks.data.video.index import VideoIndex

# Where decord 0.6 was found to return the requested frames: it seeks MPEG-TS a whole group of images too far, is some frames
# off in AVI and wherever frames refer across key frames (open groups of images: the habit of x265 and of MPEG-4 with
# B-frames), misses the last frame behind H.264 key frames that are no IDR, and refuses GIF and AV1.
_DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_DECORD_CODECS = ("h264", "vp8", "vp9")


class DecordRefuses(Exception):
    """decord is missing, or the video is not for it. Never leaves this folder."""


@functools.cache
def _import_decord() -> ModuleType | None:
    if importlib.util.find_spec("decord") is None:
        return None
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its FFmpeg writes to stderr what it raises anyway
    return decord


def read_decord(video: VideoFile, index: VideoIndex, wanted: Sequence[int]) -> np.ndarray:
    """The wanted frames (frames, height, width, 3). Raises `DecordRefuses` for what decord does not read rightly."""
    decord = _import_decord()
    if decord is None:
        raise DecordRefuses("decord is not installed")
    if index.container not in _DECORD_CONTAINERS or index.codec not in _DECORD_CODECS:
        raise DecordRefuses(f"it is not trusted with {index.codec} in {index.container}")
    if not index.fresh_keys:
        raise DecordRefuses("it misses frames where they refer across key frames")
    content = io.BytesIO(video.content) if isinstance(video.content, bytes) else os.fspath(video.content)
    try:
        # More threads break on valid VP9. A fault_tol above zero turns silent repeats of damaged frames into errors.
        video_reader = decord.VideoReader(content, num_threads=1, fault_tol=1e-9)
        num_frames = len(video_reader)
        batch = video_reader.get_batch(list(wanted)) if num_frames == index.num_frames else None
    except Exception as cause:  # DECORDError, RuntimeError, AssertionError, IndexError: all mean no
        raise DecordRefuses(str(cause).splitlines()[0] if str(cause) else repr(cause)) from cause
    if batch is None:
        raise DecordRefuses(f"it counts {num_frames} frames, there are {index.num_frames}")
    frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # decord's bridge may be torch's
    if frames.shape[1:3] != index.size:
        raise DecordRefuses(f"its frames are {frames.shape[1]}x{frames.shape[2]} instead of {index.size}")
    return frames
