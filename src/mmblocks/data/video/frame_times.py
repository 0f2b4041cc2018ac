"""When the frames of a video are shown, as its packets or its decoded frames tell it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

_FRAMES_OFF, _SECONDS_OFF = 0.5, 0.05
"""How far off an even rate frames may be that are still taken for it: containers round times, and cameras shake."""


class FramePace(NamedTuple):
    """Frames per second on average, and the seconds at which frames are shown where these do not follow from it."""

    fps: float
    times_s: tuple[float, ...] | None


def compute_pace(times: Sequence[int], last_lasts: float, unit: Fraction, said_fps: float | None) -> FramePace:
    """The pace of frames shown at these times, ascending, in units of `unit` seconds; the first is second 0.

    last_lasts: for how long the last one is shown; 0 where the file does not tell, then it is as long as the average.
    A video whose frames follow an even rate, within half a frame and 50 milliseconds, has no times: frame i is shown at
    i / fps. That rate is the header's, or the clip's own where the header's is wrong.
    """
    starts = [(time - times[0]) * unit.numerator / unit.denominator for time in times]
    by_gaps = (len(starts) - 1) / starts[-1] if starts[-1] > 0 else said_fps or 1.0
    end = starts[-1] + (last_lasts * unit.numerator / unit.denominator if last_lasts > 0 else 1 / by_gaps)
    average = len(starts) / end
    for fps in (said_fps, average, by_gaps):
        if fps and _is_even(starts, end, fps):
            return FramePace(fps, None)
    return FramePace(average, tuple(starts))


def _is_even(starts: Sequence[float], end: float, fps: float) -> bool:
    """Whether frame i starts at i / fps. A last frame that is cut short changes nothing; one that stays is seen."""
    off = min(_FRAMES_OFF / fps, _SECONDS_OFF) + 1e-9
    is_held = end - len(starts) / fps > off
    return not is_held and all(abs(start - number / fps) <= off for number, start in enumerate(starts))
