"""Which frames of a clip are shown, and when they happen. No decoding, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmblocks.errors import DataError

Clock = Literal["seconds", "steps"]


@dataclass(frozen=True, slots=True)
class FrameSample:
    """Frames chosen from a clip of `num_frames` at `fps`: every `step`-th, or evenly spread when `step` is None."""

    indices: tuple[int, ...]
    num_frames: int
    fps: float
    step: int | None

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def times_s(self, clock: Clock = "seconds") -> tuple[float, ...]:
        """When each frame is shown. The clock "steps" numbers stepped frames 0, 1, 2, as LLaVA-NeXT does: these are
        seconds only when one frame per second was wanted.
        """
        unit = self.step if clock == "steps" and self.step is not None else self.fps
        return tuple(index / unit for index in self.indices)


def sample_frames(
    num_frames: int, fps: float, *, max_frames: int | None, fps_wanted: float | None, force: bool
) -> FrameSample:
    """Choose frames as LLaVA-NeXT does (process_video_with_decord in llava/utils.py).

    With `fps_wanted`, every round(fps / fps_wanted)-th frame, unless these are more than `max_frames`; without it, or
    when they are too many, `max_frames` spread evenly from the first to the last. A clip shorter than that gives each
    of its frames once, or, with `force`, exactly `max_frames` with repeats.
    """
    if num_frames < 1:
        raise DataError(f"a clip has {num_frames} frames; it needs at least one to be shown.")
    if not fps > 0:
        raise DataError(f"a clip says fps={fps}; re-encode it, or give the frames with a rate above 0.")
    step = 1 if fps_wanted is None else max(1, round(fps / fps_wanted))
    count = -(-num_frames // step)
    if max_frames is not None and (force or count > max_frames):
        return FrameSample(_spread(num_frames, max_frames), num_frames, fps, None)
    return FrameSample(tuple(range(0, num_frames, step)), num_frames, fps, step)


def _spread(num_frames: int, count: int) -> tuple[int, ...]:
    """`count` indices from first to last, truncated: numpy.linspace(0, num_frames - 1, count, dtype=int)."""
    if count == 1:
        return (0,)
    gap = (num_frames - 1) / (count - 1)
    return (*(int(i * gap) for i in range(count - 1)), num_frames - 1)


def time_instruction(sample: FrameSample, clock: Clock = "seconds") -> str:
    """The sentence that tells LLaVA-Video when its frames happen, letter by letter as it was trained with."""
    times = ",".join(f"{t:.2f}s" for t in sample.times_s(clock))
    return (
        f"The video lasts for {sample.duration_s:.2f} seconds, and {len(sample.indices)} frames are uniformly sampled "
        f"from it. These frames are located at {times}.Please answer the following questions related to this video."
    )
