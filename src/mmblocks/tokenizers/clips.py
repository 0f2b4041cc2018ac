"""What the tokenizers of videos share. Annotations are objects here: settings of subclasses are read in other modules."""

from dataclasses import dataclass
from typing import ClassVar

from mmblocks.components import Pooling
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.geometry.frames import FrameSample, sample_frames
from mmblocks.geometry.views import make_processed_view
from mmblocks.shapes import Scenario, Size, View, VisualShape


@dataclass(frozen=True, slots=True)
class FrameTokenizer:
    """Which frames of a video are shown, each made a view by the encoder's processor and pooled.

    `fps` null spreads up to `max_frames` evenly over the video (LLaVA-OneVision's inference); a number takes that many
    frames per second and spreads only when they are too many (its training, 1). `force` gives exactly `max_frames`,
    with repeats for short clips.
    """

    view_px: Size
    grid: Size
    spatial: bool
    squash: bool
    pooling: Pooling
    max_frames: int = 32
    fps: float | None = None
    force: bool = False
    name: ClassVar[str]
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"video"})

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ConfigError(
                f"tokenizer {self.name!r}: max_frames={self.max_frames}; show at least 1 frame.",
                settings=["max_frames"],
            )
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(
                f"tokenizer {self.name!r}: fps={self.fps}; write a rate above 0, or null to spread evenly.",
                settings=["fps"],
            )

    def find_faults(self) -> list[Fault]:
        return find_pooling_faults(self.name, self.pooling, self.grid, self.spatial)

    def choose_frames(self, visual: VisualShape) -> FrameSample:
        """The frames of a video that its plan shows, with their times."""
        return sample_frames(
            visual.num_frames,
            visual.fps,
            max_frames=self.max_frames,
            fps_wanted=self.fps,
            force=self.force,
            times_s=visual.times_s,
        )

    def make_views(self, visual: VisualShape) -> tuple[View, ...]:
        """One view per shown frame."""
        frames = self.choose_frames(visual).indices
        return tuple(make_processed_view(frame, visual.size, self.view_px, self.squash) for frame in frames)


def find_pooling_faults(name: str, pooling: Pooling, grid: Size, spatial: bool) -> list[Fault]:
    """Why a tokenizer cannot pool this grid; empty when it can."""
    try:
        pooled = pooling.out_grid(grid)
    except ConfigError as cause:
        return [Fault("", f"tokenizer {name!r}: {cause}")]
    if spatial or pooled == grid:
        return []
    message = f"tokenizer {name!r} pools neighbouring cells, but the features have no image order;"
    return [Fault("", f"{message} use the pooling 'none' or a projector that keeps the grid.")]
