"""Which frames of a video are shown, and when they happen. No decoding, no torch."""

from __future__ import annotations

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

    shown_s: when the chosen frames of a video of uneven pace are shown; None where these are index / fps. Of such a video
    frames are as many seconds apart as `step` frames of its average rate.
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
        """When each frame is shown. The clock "steps" numbers stepped frames 0, 1, 2 and takes the average rate for the
        pace of others, as LLaVA-NeXT does: the first are seconds only when one frame per second was wanted.
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
    when they are too many, `max_frames` spread evenly from the first to the last. A video shorter than that gives each
    of its frames once, or, with `force`, exactly `max_frames` with repeats. Where `times_s` says when each frame is
    shown, the frames are those shown at each 1 / fps_wanted of a second, and those shown at instants spread evenly over
    the time from the first to the last; a frame that is shown at several of these is taken once, unless `force`.
    """
    if num_frames < 1:
        raise DataError(f"a video has {num_frames} frames; it needs at least one to be shown.")
    if not fps > 0:
        raise DataError(f"a video says fps={fps}; re-encode it, or give the frames with a rate above 0.")
    step = 1 if fps_wanted is None else max(1, round(fps / fps_wanted))
    if times_s is None or fps_wanted is None:
        stepped = range(0, num_frames, step)
    else:
        stepped = _sample_at_interval(1 / fps_wanted, times_s, num_frames / fps)
    if max_frames is None or not (force or len(stepped) > max_frames):
        indices = tuple(stepped)
    else:
        step = None
        indices = _spread_evenly(num_frames, max_frames) if times_s is None else _spread_over_time(times_s, max_frames)
        indices = indices if force else tuple(dict.fromkeys(indices))
    shown_s = None if times_s is None else tuple(times_s[index] for index in indices)
    return FrameSample(indices, num_frames, fps, step, shown_s)


def _sample_at_interval(gap_s: float, times_s: Sequence[float], duration_s: float) -> list[int]:
    """The frames that are shown when a multiple of `gap_s` comes."""
    ends_s = (*times_s[1:], max(duration_s, times_s[-1] + 2 * _MOMENT_S))
    # The first multiple that does not come before a frame begins must come before it ends.
    begun = (math.ceil((begin - _MOMENT_S) / gap_s) * gap_s for begin in times_s)
    return [index for index, (at, end) in enumerate(zip(begun, ends_s, strict=True)) if at < end - _MOMENT_S]


def _spread_over_time(times_s: Sequence[float], count: int) -> tuple[int, ...]:
    """The frames that are shown at `count` instants, evenly from the first frame's to the last's."""
    if count == 1:
        return (0,)
    gap_s = times_s[-1] / (count - 1)
    return (*(bisect_right(times_s, i * gap_s + _MOMENT_S) - 1 for i in range(count - 1)), len(times_s) - 1)


def _spread_evenly(num_frames: int, count: int) -> tuple[int, ...]:
    """`count` indices from first to last, truncated: numpy.linspace(0, num_frames - 1, count, dtype=int)."""
    if count == 1:
        return (0,)
    gap = (num_frames - 1) / (count - 1)
    return (*(int(i * gap) for i in range(count - 1)), num_frames - 1)


def format_time_instruction(sample: FrameSample, clock: Clock = "seconds") -> str:
    """The sentence that tells LLaVA-Video when its frames happen, letter by letter as it was trained with."""
    times = ",".join(f"{t:.2f}s" for t in sample.compute_times_s(clock))
    return (
        f"The video lasts for {sample.duration_s:.2f} seconds, and {len(sample.indices)} frames are uniformly sampled "
        f"from it. These frames are located at {times}.Please answer the following questions related to this video."
    )
