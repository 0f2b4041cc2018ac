"""Which frames of a video are shown, and their times. No decoding, no torch."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmblocks.errors import DataError

Clock = Literal["seconds", "steps"]


_MOMENT_S = 1e-6
"""Times that differ by less are the same: they come from integers in units of 10 microseconds and more."""


@dataclass(frozen=True, slots=True)
class FrameSample:
    """Frames chosen from a video of `num_frames` at `fps`: every `step`-th, or evenly spread when `step` is None.

    shown_s: times of the chosen frames in a video of variable frame rate; None where these are index / fps. In such a
    video, frames are as many seconds apart as `step` frames at its average rate.
    """

    indices: tuple[int, ...]
    num_frames: int
    fps: float
    step: int | None
    shown_s: tuple[float, ...] | None = None

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def compute_times_s(self, clock: Clock = "seconds") -> tuple[float, ...]:
        """The time of each frame. The clock "steps" numbers stepped frames 0, 1, 2, and divides the index of spread ones by
        the average rate, as LLaVA-NeXT does: the former are seconds only at one frame per second.
        """
        if clock == "steps" and self.step is not None:
            return tuple(float(number) for number in range(len(self.indices)))
        if clock == "seconds" and self.shown_s is not None:
            return self.shown_s
        return tuple(index / self.fps for index in self.indices)


def sample_frames(
    num_frames: int,
    fps: float,
    *,
    max_frames: int | None,
    fps_wanted: float | None,
    force: bool,
    times_s: Sequence[float] | None = None,
) -> FrameSample:
    """Choose frames as LLaVA-NeXT does (process_video_with_decord in llava/utils.py).

    With `fps_wanted`, every round(fps / fps_wanted)-th frame, unless these are more than `max_frames`; without it, or
    when they are more, `max_frames` spread evenly from the first to the last. A video shorter than that gives each of
    its frames once, or, with `force`, exactly `max_frames` with repeats. With `times_s`, the time of each frame, frames
    are those on screen at every 1 / fps_wanted seconds, or at instants spread evenly from the first frame's time to the
    last's; a frame that is on screen at several of these is taken once, unless `force`.
    """
    if num_frames < 1:
        raise DataError(f"a video has {num_frames} frames; it needs at least one to be shown.")
    if not fps > 0:
        raise DataError(f"a video has fps={fps}; re-encode it, or give the frames with a rate above 0.")
    step = 1 if fps_wanted is None else max(1, round(fps / fps_wanted))
    if times_s is None or fps_wanted is None:
        stepped = range(0, num_frames, step)
    else:
        gap_s, ends_s = 1 / fps_wanted, (*times_s[1:], max(num_frames / fps, times_s[-1] + 2 * _MOMENT_S))
        # The first multiple of the gap that is not before a frame begins must come before the frame ends.
        instants_s = (math.ceil((begin - _MOMENT_S) / gap_s) * gap_s for begin in times_s)
        stepped = [i for i, (at, end) in enumerate(zip(instants_s, ends_s, strict=True)) if at < end - _MOMENT_S]
    if max_frames is None or not (force or len(stepped) > max_frames):
        indices = tuple(stepped)
    else:
        step = None
        indices = _spread_frames(num_frames, times_s, max_frames)
        indices = indices if force else tuple(dict.fromkeys(indices))
    shown_s = None if times_s is None else tuple(times_s[index] for index in indices)
    return FrameSample(indices, num_frames, fps, step, shown_s)


def _spread_frames(num_frames: int, times_s: Sequence[float] | None, count: int) -> tuple[int, ...]:
    """`count` frames from first to last, spread by number as numpy.linspace(0, num_frames - 1, count, dtype=int), or by time."""
    if count == 1:
        return (0,)
    gap = (num_frames - 1 if times_s is None else times_s[-1]) / (count - 1)
    if times_s is None:
        inner = (int(i * gap) for i in range(count - 1))
    else:
        inner = (bisect_right(times_s, i * gap + _MOMENT_S) - 1 for i in range(count - 1))
    return (*inner, num_frames - 1)


def format_time_instruction(sample: FrameSample, clock: Clock = "seconds") -> str:
    """The sentence with the times of frames that LLaVA-Video was trained with, letter by letter."""
    times = ",".join(f"{t:.2f}s" for t in sample.compute_times_s(clock))
    return (
        f"The video lasts for {sample.duration_s:.2f} seconds, and {len(sample.indices)} frames are uniformly sampled "
        f"from it. These frames are located at {times}.Please answer the following questions related to this video."
    )
