"""Clips read in a process of their own, which is ended when it hangs, crashes or takes too much memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.data.media.files import Slice, name_of
from mmblocks.data.video import VideoSource, is_frames, read_frames, video_shape
from mmblocks.data.video.quarantine import Place, Quarantine
from mmblocks.errors import ConfigError, DataError
from mmblocks.shapes import Size, VisualShape

# Readers and their pipes are POSIX; elsewhere clips are read in this process, without a guard.
_CAN_GUARD = os.name == "posix"


@dataclass(frozen=True, slots=True)
class ClipReader:
    """`video_shape` and `read_frames`, with the same results and errors, that cannot hang or eat the memory.

    deadline_s: seconds that one shape or one set of frames may take. memory_gib: what the reading process may hold, of
    which pixels on their way count twice; watched on Linux. quarantine: a JSON-lines file of clips that hung, crashed or
    could not be read; these are refused from then on without being opened, until their line is deleted or they change.

    Each process has one reader, started at the first clip and again after a failure; forked and spawned data workers
    start their own. It ends with the process, however that ends. A crash and too much memory are tried twice. Arrays and
    clips given as pictures need no guard. On Windows clips are read in the asking process, without one.
    """

    deadline_s: float = 120.0
    memory_gib: float = 4.0
    quarantine: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, value in (("deadline_s", self.deadline_s), ("memory_gib", self.memory_gib)):
            if not value > 0:
                raise ConfigError(f"clip reader: {name}={value!r}; it must be above 0.")

    def shape(self, source: VideoSource) -> VisualShape:
        """What `video_shape` says of a clip."""
        if not _needs_guard(source):
            return video_shape(source)
        answer, _ = self._read(source, None)
        times_s = None if answer["times_s"] is None else tuple(answer["times_s"])
        return VisualShape("video", Size(*answer["size"]), answer["num_frames"], answer["fps"], times_s=times_s)

    def frames(self, source: VideoSource, indices: Sequence[int]) -> np.ndarray:
        """What `read_frames` gives: uint8 (n, height, width, 3)."""
        if not _needs_guard(source):
            return read_frames(source, indices)
        answer, pixels = self._read(source, [int(i) for i in indices])
        return pixels.reshape(answer["frames"])

    def _read(self, source: Any, indices: list[int] | None) -> tuple[dict[str, Any], np.ndarray]:
        name = name_of(source, "video")
        self._refuse_known(source, name)
        answer, pixels = self._asked(source, indices, name)
        if "mistake" in answer:
            raise RuntimeError(f"{name}: the process reading clips failed on it by a mistake:\n{answer['mistake']}")
        if "fault" in answer:
            if answer["of_clip"]:
                self._note(source, answer["fault"].removeprefix(f"{name}: "))
            raise DataError(answer["fault"])
        return answer, pixels

    def _asked(self, source: Any, indices: list[int] | None, name: str) -> tuple[dict[str, Any], np.ndarray]:
        from mmblocks.helper_process import NoAnswer  # POSIX only

        request, content = _request(source, indices)
        try:
            try:
                return self._answer(request, content)
            except NoAnswer as failure:  # what ended the process may have had nothing to do with the clip
                if not failure.again:
                    raise
            return self._answer(request, content)
        except NoAnswer as failure:
            where = self._note(source, str(failure))
            raise DataError(
                f"{name}: {failure}; drop the record, re-encode the clip, or allow more "
                f"(deadline_s={self.deadline_s:g}, memory_gib={self.memory_gib:g}).{where}"
            ) from failure

    def _answer(self, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], np.ndarray]:
        from mmblocks.data.video.home import HOME
        from mmblocks.helper_process import Watch

        answer, pixels = HOME.ask(request, content, Watch(self.deadline_s, self.memory_gib * 2**30, "reading it"))
        return answer, np.frombuffer(pixels, dtype=np.uint8)

    def _refuse_known(self, source: Any, name: str) -> None:
        place = _place_of(source)
        if self.quarantine is None or place is None:
            return
        line = Quarantine(Path(self.quarantine)).line_of(place)
        if line is not None:
            raise DataError(
                f"{name}: in quarantine since {line.get('when')}: {line.get('reason')} To try it again, delete its line "
                f"in {self.quarantine}."
            )

    def _note(self, source: Any, reason: str) -> str:
        """Write a clip into the quarantine list, if there is one, and say so."""
        place, reason = _place_of(source), reason if reason.endswith(".") else f"{reason}."
        if self.quarantine is None or place is None or not Quarantine(Path(self.quarantine)).add(place, reason):
            return ""
        return f" It stands in {self.quarantine} now; delete its line to try it again."


def _needs_guard(source: Any) -> bool:
    """Arrays are there already, pictures are read as pictures, and what is no source at all is refused as ever."""
    return _CAN_GUARD and isinstance(source, str | os.PathLike | bytes | Slice) and not is_frames(source)


def _place_of(source: Any) -> Place | None:
    if isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:")):
        return None
    if isinstance(source, Slice):
        return Place(f"{source.path.absolute()}:{source.name}", source.path)
    path = Path(source)
    return Place(str(path.absolute()), path)


def _request(source: Any, indices: list[int] | None) -> tuple[dict[str, Any], bytes]:
    """What the reader is sent; it follows this process into its working directory, to which paths are relative."""
    request = {"cwd": _working_directory(), "indices": indices, "path": None, "slice": None}
    if isinstance(source, bytes):
        return request, source
    if isinstance(source, Slice):
        return {**request, "slice": [str(source.path), source.offset, source.size, source.name]}, b""
    return {**request, "path": os.fsdecode(source)}, b""


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # deleted
        return None
