from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.shapes import VisualPlan, VisualShape
from mmblocks.tokenizers.clips import Clips
from mmblocks.tokenizers.lowering import Lowered, pooled
from mmblocks.tokenizers.rows import rows_of, view_by_view
from mmblocks.tokenizers.telling import require_format, stamp_fields


@tokenizers.register(
    "stamped_frames",
    source="https://arxiv.org/abs/2407.07895",
    tiny={"max_frames": 4},
    oracle="LLaVA-NeXT (golden clips, frame by frame)",
)
@dataclass(frozen=True, slots=True)
class StampedFrames(Clips):
    """A clip as pictures one after the other, each behind a text that says when it is shown.

    `stamp` is that text, with {number} (from 1), {seconds} and {clock} (mm:ss) filled in; SmolVLM has
    "\\nFrame from {clock}:", InternVL "Frame{number}: ". An empty stamp leaves the pictures alone, as
    LLaVA-NeXT-Interleave shows clips. With `newline` a row ends each picture. `max_frames`, `fps` and `force` choose
    frames as in 'frames'.
    """

    stamp: str = "{seconds:.2f}s: "
    newline: bool = False
    name: ClassVar[str] = "stamped_frames"

    def __post_init__(self) -> None:
        Clips.__post_init__(self)
        require_format(self.name, "stamp", self.stamp, stamp_fields(1, 0.0))

    @property
    def marks(self) -> tuple[str, ...]:
        return ("newline",) if self.newline else ()

    def plan(self, visual: VisualShape) -> VisualPlan:
        times_s = self.sample(visual).times_s()
        rows = self.pooling.out_grid(self.grid).area + int(self.newline)
        stamps = tuple((n * rows, self.stamp.format(**stamp_fields(n + 1, t))) for n, t in enumerate(times_s))
        return VisualPlan(self.views(visual), len(times_s) * rows, told=stamps if self.stamp else ())

    def count(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: VisualPlan, marks: Mapping[str, Tensor]) -> Tensor:
        """(frames, h, w, d) to (plan.num_tokens, d)."""
        return self._arranged(self.pooling(x), marks)

    def lower(self, plan: VisualPlan) -> Lowered | None:
        """What each token is made of, in integers; None where the pooling is not linear."""
        return pooled(self, plan, self._arranged)

    def _arranged(self, pooled: Tensor, marks: Mapping[str, Tensor]) -> Tensor:
        return view_by_view(pooled, marks["newline"]) if self.newline else rows_of(pooled)


tokenizers.preset("stamped_frames_clock", of="stamped_frames", fps=1.0, stamp="\nFrame from {clock}:")
tokenizers.preset("frames_as_images", of="stamped_frames", stamp="", newline=True)
