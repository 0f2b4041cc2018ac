from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.shapes import VisualPlan, VisualShape
from mmblocks.tokenizers.frame_tokenizer import FrameTokenizer
from mmblocks.tokenizers.inline_text import make_stamp_fields, require_format
from mmblocks.tokenizers.lowering import LoweredPlan, lower_pooling
from mmblocks.tokenizers.rows import append_newline_per_view, to_rows


@tokenizers.register(
    "stamped_frames",
    source="https://arxiv.org/abs/2407.07895",
    tiny={"max_frames": 4},
    verified_against="LLaVA-NeXT (golden videos, frame by frame)",
)
@dataclass(frozen=True, slots=True)
class StampedFrames(FrameTokenizer):
    """A video as images one after the other, each behind a text with its time.

    `stamp` is that text, with {number} (from 1), {seconds} and {clock} (mm:ss) filled in; SmolVLM has
    "\\nFrame from {clock}:", InternVL "Frame{number}: ". An empty stamp writes no text, as LLaVA-NeXT-Interleave shows
    videos. With `newline` a learned newline ends each image. `max_frames`, `fps` and `force` choose frames as in 'frames'.
    """

    stamp: str = "{seconds:.2f}s: "
    newline: bool = False
    name: ClassVar[str] = "stamped_frames"

    def __post_init__(self) -> None:
        FrameTokenizer.__post_init__(self)
        require_format(self.name, "stamp", self.stamp, make_stamp_fields(1, 0.0))

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        return ("newline",) if self.newline else ()

    def plan(self, visual: VisualShape) -> VisualPlan:
        times_s = self.choose_frames(visual).compute_times_s()
        rows = self.pooling.out_grid(self.grid).area + int(self.newline)
        stamps = tuple((n * rows, self.stamp.format(**make_stamp_fields(n + 1, t))) for n, t in enumerate(times_s))
        return VisualPlan(self.make_views(visual), len(times_s) * rows, inline_texts=stamps if self.stamp else ())

    def assemble(self, x: Tensor, plan: VisualPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(frames, h, w, d) to (plan.num_tokens, d)."""
        return self._arrange_rows(self.pooling(x), learned_tokens)

    lowerable_assemble = assemble

    def lower_plan(self, plan: VisualPlan) -> LoweredPlan | None:
        return lower_pooling(self, plan, self._arrange_rows)

    def _arrange_rows(self, pooled: Tensor, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        return append_newline_per_view(pooled, learned_tokens["newline"]) if self.newline else to_rows(pooled)


tokenizers.preset("stamped_frames_clock", of="stamped_frames", fps=1.0, stamp="\nFrame from {clock}:")
tokenizers.preset("frames_as_images", of="stamped_frames", stamp="", newline=True)
