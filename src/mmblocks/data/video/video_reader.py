"""Videos read in a process of their own, which is ended when it hangs, crashes or takes too much memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mmblocks.data.media.files import FileSlice, describe_source
from mmblocks.data.video import VideoSource, count_decoding_threads, is_frame_source, read_frames, read_video_shape
from mmblocks.data.video.quarantine import Quarantine, VideoLocation
from mmblocks.errors import ConfigError, DataError
from mmblocks.shapes import Size, VisualShape

# Readers and their pipes are POSIX; elsewhere videos are read in this process, without a guard.
_CAN_GUARD = os.name == "posix"


@dataclass(frozen=True, slots=True)
class VideoReader:
    """`read_video_shape` and `read_frames`, with the same results and errors, that cannot hang or exhaust the memory.

    deadline_s: seconds that one shape or one set of frames may take. memory_gib: what the reading process may hold, of
    which pixels on their way count twice; watched on Linux. quarantine: a JSON-lines file of videos that hung, crashed or
    could not be read; these are refused from then on without being opened, until their line is deleted or they change.
    threads: as in `read_frames`.

    Each process has one reader, started at the first video and again after a failure; forked and spawned data workers
    start their own. It ends with the process, however that ends. A crash and too much memory are tried twice. Arrays and
    videos given as images need no guard. On Windows videos are read in the asking process, without one.
    """

    deadline_s: float = 120.0
    memory_gib: float = 4.0
    quarantine: str | os.PathLike[str] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("deadline_s", self.deadline_s), ("memory_gib", self.memory_gib)):
            if not value > 0:
                raise ConfigError(f"video reader: {name}={value!r}; it must be above 0.")

    def read_shape(self, source: VideoSource) -> VisualShape:
        """As `read_video_shape`."""
        if not _needs_guard(source):
            return read_video_shape(source)
        answer, _ = self._read_guarded(source, None)
        times_s = None if answer["times_s"] is None else tuple(answer["times_s"])
        return VisualShape("video", Size(*answer["size"]), answer["num_frames"], answer["fps"], times_s=times_s)

    def read_video_frames(self, source: VideoSource, indices: Sequence[int]) -> np.ndarray:
        """As `read_frames`: uint8 (n, height, width, 3)."""
        if not _needs_guard(source):
            return read_frames(source, indices, threads=self.threads)
        answer, pixels = self._read_guarded(source, [int(i) for i in indices])
        return pixels.reshape(answer["frames"])

    def _read_guarded(self, source: GuardedSource, indices: list[int] | None) -> tuple[dict[str, Any], np.ndarray]:
        from mmblocks.helper_process import NoAnswerError  # POSIX only

        name, location = describe_source(source, "video"), _locate_video(source)
        if self.quarantine is not None and location is not None:
            line = Quarantine(Path(self.quarantine)).find_line(location)
            if line is not None:
                raise DataError(
                    f"{name}: in quarantine since {line.get('when')}: {line.get('reason')} To try it again, delete its line "
                    f"in {self.quarantine}."
                )
        try:
            try:
                answer, pixels = self._ask_once(source, indices)
            except NoAnswerError as failure:  # what ended the process may have had nothing to do with the video
                if not failure.again:
                    raise
                answer, pixels = self._ask_once(source, indices)
        except NoAnswerError as failure:
            where = self._add_to_quarantine(location, str(failure))
            raise DataError(
                f"{name}: {failure}; drop the record, re-encode the video, or allow more "
                f"(deadline_s={self.deadline_s:g}, memory_gib={self.memory_gib:g}).{where}"
            ) from failure
        if "mistake" in answer:
            raise RuntimeError(f"{name}: the process reading videos failed on it by a mistake:\n{answer['mistake']}")
        if "fault" in answer:
            if answer["of_clip"]:
                self._add_to_quarantine(location, answer["fault"].removeprefix(f"{name}: "))
            raise DataError(answer["fault"])
        return answer, pixels

    def _ask_once(self, source: GuardedSource, indices: list[int] | None) -> tuple[dict[str, Any], np.ndarray]:
        from mmblocks.data.video.home import HOME
        from mmblocks.helper_process import Watchdog

        try:
            folder = str(Path.cwd())  # the reader follows this process there, as paths are relative to it
        except FileNotFoundError:  # deleted
            folder = None
        request: dict[str, Any] = {"cwd": folder, "indices": indices, "path": None, "slice": None}
        request["threads"] = count_decoding_threads() if self.threads is None else self.threads
        if isinstance(source, FileSlice):
            request["slice"] = [str(source.path), source.offset, source.size, source.name]
        elif not isinstance(source, bytes):
            request["path"] = os.fsdecode(source)
        content = source if isinstance(source, bytes) else b""
        watchdog = Watchdog(self.deadline_s, self.memory_gib * 2**30, "reading it")
        answer, pixels = HOME.send_request(request, content, watchdog)
        return answer, np.frombuffer(pixels, dtype=np.uint8)

    def _add_to_quarantine(self, location: VideoLocation | None, reason: str) -> str:
        """Write a video into the quarantine list, if there is one, and say so."""
        reason = reason if reason.endswith(".") else f"{reason}."
        if self.quarantine is None or location is None:
            return ""
        if not Quarantine(Path(self.quarantine)).add_video(location, reason):
            return ""
        return f" It stands in {self.quarantine} now; delete its line to try it again."


GuardedSource = str | os.PathLike[str] | bytes | FileSlice


def _needs_guard(source: object) -> TypeGuard[GuardedSource]:
    """Arrays are in memory, and frames are read as images; both need no guard. Invalid sources are refused elsewhere."""
    return _CAN_GUARD and isinstance(source, str | os.PathLike | bytes | FileSlice) and not is_frame_source(source)


def _locate_video(source: GuardedSource) -> VideoLocation | None:
    if isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:")):
        return None
    if isinstance(source, FileSlice):
        return VideoLocation(f"{source.path.absolute()}:{source.name}", source.path)
    path = Path(source)
    return VideoLocation(str(path.absolute()), path)
