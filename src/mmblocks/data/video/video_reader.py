"""Clips read in a process of their own, which is ended when it hangs, crashes or takes too much memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.data.media.files import FileSlice, describe_source
from mmblocks.data.video import VideoSource, is_frame_source, read_frames, read_video_shape
from mmblocks.data.video.quarantine import Quarantine, VideoLocation
from mmblocks.errors import ConfigError, DataError
from mmblocks.shapes import Size, VisualShape

# Readers and their pipes are POSIX; elsewhere videos are read in this process, without a guard.
_CAN_GUARD = os.name == "posix"


@dataclass(frozen=True, slots=True)
class VideoReader:
    """`video_shape` and `read_frames`, with the same results and errors, that cannot hang or eat the memory.

    deadline_s: seconds that one shape or one set of frames may take. memory_gib: what the reading process may hold, of
    which pixels on their way count twice; watched on Linux. quarantine: a JSON-lines file of videos that hung, crashed or
    could not be read; these are refused from then on without being opened, until their line is deleted or they change.

    Each process has one reader, started at the first video and again after a failure; forked and spawned data workers
    start their own. It ends with the process, however that ends. A crash and too much memory are tried twice. Arrays and
    videos given as images need no guard. On Windows videos are read in the asking process, without one.
    """

    deadline_s: float = 120.0
    memory_gib: float = 4.0
    quarantine: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, value in (("deadline_s", self.deadline_s), ("memory_gib", self.memory_gib)):
            if not value > 0:
                raise ConfigError(f"clip reader: {name}={value!r}; it must be above 0.")

    def read_shape(self, source: VideoSource) -> VisualShape:
        """What `video_shape` says of a video."""
        if not _needs_guard(source):
            return read_video_shape(source)
        answer, _ = self._read_guarded(source, None)
        times_s = None if answer["times_s"] is None else tuple(answer["times_s"])
        return VisualShape("video", Size(*answer["size"]), answer["num_frames"], answer["fps"], times_s=times_s)

    def read_video_frames(self, source: VideoSource, indices: Sequence[int]) -> np.ndarray:
        """What `read_frames` gives: uint8 (n, height, width, 3)."""
        if not _needs_guard(source):
            return read_frames(source, indices)
        answer, pixels = self._read_guarded(source, [int(i) for i in indices])
        return pixels.reshape(answer["frames"])

    def _read_guarded(self, source: Any, indices: list[int] | None) -> tuple[dict[str, Any], np.ndarray]:
        name = describe_source(source, "video")
        self._refuse_known(source, name)
        answer, pixels = self._ask_reader(source, indices, name)
        if "mistake" in answer:
            raise RuntimeError(f"{name}: the process reading videos failed on it by a mistake:\n{answer['mistake']}")
        if "fault" in answer:
            if answer["of_clip"]:
                self._add_to_quarantine(source, answer["fault"].removeprefix(f"{name}: "))
            raise DataError(answer["fault"])
        return answer, pixels

    def _ask_reader(self, source: Any, indices: list[int] | None, name: str) -> tuple[dict[str, Any], np.ndarray]:
        from mmblocks.helper_process import NoAnswerError  # POSIX only

        request, content = _make_request(source, indices)
        try:
            try:
                return self._ask_once(request, content)
            except NoAnswerError as failure:  # what ended the process may have had nothing to do with the video
                if not failure.again:
                    raise
            return self._ask_once(request, content)
        except NoAnswerError as failure:
            where = self._add_to_quarantine(source, str(failure))
            raise DataError(
                f"{name}: {failure}; drop the record, re-encode the video, or allow more "
                f"(deadline_s={self.deadline_s:g}, memory_gib={self.memory_gib:g}).{where}"
            ) from failure

    def _ask_once(self, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], np.ndarray]:
        from mmblocks.data.video.home import HOME
        from mmblocks.helper_process import Watchdog

        answer, pixels = HOME.send_request(
            request, content, Watchdog(self.deadline_s, self.memory_gib * 2**30, "reading it")
        )
        return answer, np.frombuffer(pixels, dtype=np.uint8)

    def _refuse_known(self, source: Any, name: str) -> None:
        place = _locate_video(source)
        if self.quarantine is None or place is None:
            return
        line = Quarantine(Path(self.quarantine)).find_line(place)
        if line is not None:
            raise DataError(
                f"{name}: in quarantine since {line.get('when')}: {line.get('reason')} To try it again, delete its line "
                f"in {self.quarantine}."
            )

    def _add_to_quarantine(self, source: Any, reason: str) -> str:
        """Write a video into the quarantine list, if there is one, and say so."""
        place, reason = _locate_video(source), reason if reason.endswith(".") else f"{reason}."
        if self.quarantine is None or place is None or not Quarantine(Path(self.quarantine)).add_video(place, reason):
            return ""
        return f" It stands in {self.quarantine} now; delete its line to try it again."


def _needs_guard(source: Any) -> bool:
    """Arrays are there already, images are read as images, and what is no source at all is refused as ever."""
    return _CAN_GUARD and isinstance(source, str | os.PathLike | bytes | FileSlice) and not is_frame_source(source)


def _locate_video(source: Any) -> VideoLocation | None:
    if isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:")):
        return None
    if isinstance(source, FileSlice):
        return VideoLocation(f"{source.path.absolute()}:{source.name}", source.path)
    path = Path(source)
    return VideoLocation(str(path.absolute()), path)


def _make_request(source: Any, indices: list[int] | None) -> tuple[dict[str, Any], bytes]:
    """What the reader is sent; it follows this process into its working directory, to which paths are relative."""
    request = {"cwd": _working_directory(), "indices": indices, "path": None, "slice": None}
    if isinstance(source, bytes):
        return request, source
    if isinstance(source, FileSlice):
        return {**request, "slice": [str(source.path), source.offset, source.size, source.name]}, b""
    return {**request, "path": os.fsdecode(source)}, b""


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # deleted
        return None
