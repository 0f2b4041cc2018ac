from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.geometry.frames import Clock, format_time_instruction
from mmblocks.shapes import Size, VisualPlan, VisualShape
from mmblocks.tokenizers.frame_tokenizer import FrameTokenizer
from mmblocks.tokenizers.lowering import LoweredPlan, lower_pooling
from mmblocks.tokenizers.rows import append_newline, append_newline_per_line, append_newline_per_view, to_rows


@dataclass(frozen=True, slots=True)
class FramesPlan(VisualPlan):
    """One view per frame, each pooled to `frame_cells`."""

    frame_cells: Size


@tokenizers.register(
    "frames",
    source="https://arxiv.org/abs/2408.03326",
    tiny={"max_frames": 4},
    verified_against="LLaVA-NeXT (golden videos)",
)
@dataclass(frozen=True, slots=True)
class Frames(FrameTokenizer):
    """A video as frames, one after the other. Each becomes a view as the encoder's processor makes it, and is pooled.

    `fps` null spreads up to `max_frames` evenly over the video (LLaVA-OneVision's inference); a number takes that many
    frames per second, and spreads `max_frames` evenly when there would be more (its training, 1). `force` gives exactly
    `max_frames`, with repeats for short videos. `newline`: after each line of each frame ("grid"), after each frame ("frame"), once
    at the end ("one_token": 196 per frame and 1 in LLaVA-OneVision), or nowhere. `tell_times` puts LLaVA-Video's
    sentence about the times of the frames behind them: true "seconds", or "steps" as LLaVA-NeXT counted them.
    `pool_at="features"` pools the encoder's features before they are projected, as transformers' llava_next_video does;
    the projector must then map every cell by itself.
    """

    newline: Literal["grid", "frame", "one_token", "none"] = "one_token"
    tell_times: Clock | None = None
    pool_at: Literal["tokens", "features"] = "tokens"
    name: ClassVar[str] = "frames"

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        return () if self.newline == "none" else ("newline",)

    def find_faults(self) -> list[Fault]:
        faults = FrameTokenizer.find_faults(self)
        if self.newline == "grid" and not self.spatial:
            message = "tokenizer 'frames': newline='grid' ends each line of a frame, but the features have no lines;"
            faults.append(Fault("newline", f"{message} use newline='frame', 'one_token' or 'none'."))
        return faults

    def plan(self, visual: VisualShape) -> FramesPlan:
        views = self.make_views(visual)
        cells = self.pooling.out_grid(self.grid)
        newlines = {"grid": len(views) * cells.height, "frame": len(views), "one_token": 1, "none": 0}[self.newline]
        num_tokens = len(views) * cells.area + newlines
        if self.tell_times is None:
            return FramesPlan(views, num_tokens, cells)
        # On lines of its own, as LLaVA-Video's training data has it.
        sentence = f"\n{format_time_instruction(self.choose_frames(visual), self.tell_times)}\n"
        return FramesPlan(views, num_tokens, cells, inline_texts=((num_tokens, sentence),))

    def before_projector(self, x: Tensor) -> Tensor:
        """(frames, h, w, encoder dim), pooled with `pool_at="features"`."""
        return self.pooling(x) if self.pool_at == "features" else x

    def assemble(self, x: Tensor, plan: FramesPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(frames, h, w, d) to (plan.num_tokens, d)."""
        if self.pool_at == "tokens":
            return self._arrange_rows(self.pooling(x), learned_tokens)
        if x.shape[1:3] != plan.frame_cells:
            raise ConfigError(
                f"tokenizer 'frames': pool_at='features' leaves {plan.frame_cells} cells, of which the projector makes "
                f"{Size(*x.shape[1:3])}; use a projector that maps every cell by itself, or pool_at='tokens'.",
                settings=["pool_at"],
            )
        return self._arrange_rows(x, learned_tokens)

    lowerable_assemble = assemble

    def lower_plan(self, plan: FramesPlan) -> LoweredPlan | None:
        lowered = lower_pooling(self, plan, self._arrange_rows)
        return lowered if lowered is None else replace(lowered, before_projector=self.pool_at == "features")

    def _arrange_rows(self, pooled: Tensor, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        match self.newline:
            case "grid":
                return append_newline_per_line(pooled, learned_tokens["newline"])
            case "frame":
                return append_newline_per_view(pooled, learned_tokens["newline"])
            case "one_token":
                return append_newline(to_rows(pooled), learned_tokens["newline"])
            case "none":
                return to_rows(pooled)


tokenizers.preset("frames_8", of="frames", max_frames=8)
tokenizers.preset(
    "frames_llava_video", of="frames", max_frames=64, fps=1.0, force=True, newline="grid", tell_times="seconds"
)
tokenizers.preset("frames_plain", of="frames", newline="none")
tokenizers.preset("frames_16_plain", of="frames_plain", max_frames=16)
tokenizers.preset("frames_8_plain", of="frames_plain", max_frames=8)
tokenizers.preset("frames_lines", of="frames", newline="grid")
