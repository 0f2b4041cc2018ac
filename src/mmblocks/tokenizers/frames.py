from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmblocks.components import Pooling, tokenizers
from mmblocks.errors import ConfigError
from mmblocks.geometry.frames import FrameSample, sample_frames
from mmblocks.geometry.views import processed
from mmblocks.shapes import Scenario, Size, VisualPlan, VisualShape
from mmblocks.tokenizers.rows import ended_by, line_by_line, rows_of, view_by_view


@dataclass(frozen=True, slots=True)
class FramesPlan(VisualPlan):
    """One view per frame, each pooled to `frame_cells`."""

    frame_cells: Size


@tokenizers.register("frames", source="https://arxiv.org/abs/2408.03326", tiny={"max_frames": 4})
@dataclass(frozen=True, slots=True)
class Frames:
    """A clip as frames, each made a view by the encoder's processor and pooled, one after the other.

    `fps` null spreads up to `max_frames` evenly over the clip (LLaVA-OneVision's inference); a number takes that many
    frames per second and spreads only when they are too many (its training, 1). `force` gives exactly `max_frames`,
    with repeats for short clips. `newline`: after each line of each frame ("grid"), after each frame ("frame"), once
    at the end ("one_token": 196 per frame and 1 in LLaVA-OneVision), or nowhere.
    """

    view_px: Size
    grid: Size
    spatial: bool
    squash: bool
    pooling: Pooling
    max_frames: int = 32
    fps: float | None = None
    force: bool = False
    newline: Literal["grid", "frame", "one_token", "none"] = "one_token"
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"video"})

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ConfigError(f"tokenizer 'frames': max_frames={self.max_frames}; show at least 1 frame.")
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"tokenizer 'frames': fps={self.fps}; write a rate above 0, or null to spread evenly.")

    @property
    def marks(self) -> tuple[str, ...]:
        return () if self.newline == "none" else ("newline",)

    def reasons_against(self) -> list[str]:
        try:
            pooled = self.pooling.out_grid(self.grid)
        except ConfigError as cause:
            return [f"tokenizer 'frames': {cause}"]
        if self.spatial:
            return []
        reasons = []
        if pooled != self.grid:
            reasons.append(
                "tokenizer 'frames' pools neighbouring cells, but the features have no picture order; "
                "use the pooling 'none' or a projector that keeps the grid."
            )
        if self.newline == "grid":
            reasons.append(
                "tokenizer 'frames': newline='grid' ends each line of a frame, but the features have no lines; "
                "use newline='frame', 'one_token' or 'none'."
            )
        return reasons

    def sample(self, visual: VisualShape) -> FrameSample:
        """The frames of a clip that its plan shows, with their times."""
        return sample_frames(
            visual.num_frames, visual.fps, max_frames=self.max_frames, fps_wanted=self.fps, force=self.force
        )

    def plan(self, visual: VisualShape) -> FramesPlan:
        frames = self.sample(visual).indices
        cells = self.pooling.out_grid(self.grid)
        newlines = {"grid": len(frames) * cells.height, "frame": len(frames), "one_token": 1, "none": 0}[self.newline]
        views = tuple(processed(frame, visual.size, self.view_px, self.squash) for frame in frames)
        return FramesPlan(views, len(frames) * cells.area + newlines, cells)

    def count(self, plan: FramesPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: FramesPlan, marks: Mapping[str, Tensor]) -> Tensor:
        """(frames, h, w, d) to (plan.num_tokens, d)."""
        pooled = self.pooling(x)
        match self.newline:
            case "grid":
                return line_by_line(pooled, marks["newline"])
            case "frame":
                return view_by_view(pooled, marks["newline"])
            case "one_token":
                return ended_by(rows_of(pooled), marks["newline"])
            case "none":
                return rows_of(pooled)


tokenizers.preset("frames_8", of="frames", max_frames=8)
