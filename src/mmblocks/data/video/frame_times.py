"""When the frames of a video are shown, from its packets or its decoded frames."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

_FRAMES_OFF, _SECONDS_OFF = 0.5, 0.05
"""How far from an even rate frames may be and still count as even: containers round times, and clocks jitter."""


class FramePace(NamedTuple):
    """Frames per second on average, and the seconds at which frames are shown where these do not follow from it."""

    fps: float
    times_s: tuple[float, ...] | None


def compute_pace(times: Sequence[int], last_duration: float, unit: Fraction, header_fps: float | None) -> FramePace:
    """The pace of frames shown at these times, ascending, in units of `unit` seconds; the first is second 0.

    last_duration: for how long the last one is shown; 0 where the file does not say, then it is as long as the average.
    A video whose frames follow an even rate, within half a frame and 50 milliseconds, has no times: frame i is shown at
    i / fps. That rate is the header's, or the video's own where the header's is wrong.
    """
    starts = [(time - times[0]) * unit.numerator / unit.denominator for time in times]
    by_gaps = (len(starts) - 1) / starts[-1] if starts[-1] > 0 else header_fps or 1.0
    end = starts[-1] + (last_duration * unit.numerator / unit.denominator if last_duration > 0 else 1 / by_gaps)
    average = len(starts) / end
    for fps in (header_fps, average, by_gaps):
        if fps:
            off = min(_FRAMES_OFF / fps, _SECONDS_OFF) + 1e-9
            is_held = (
                end - len(starts) / fps > off
            )  # a last frame that is cut short changes nothing; one that stays does
            if not is_held and all(abs(start - number / fps) <= off for number, start in enumerate(starts)):
                return FramePace(fps, None)
    return FramePace(average, tuple(starts))
