from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from mmblocks.components import Pooling, tokenizers
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.shapes import VisualPlan, VisualShape
from mmblocks.tokenizers.frame_tokenizer import FrameTokenizer, find_pooling_faults
from mmblocks.tokenizers.lowering import LoweredPlan, find_stencil, make_cell_codes, make_learned_token_codes
from mmblocks.tokenizers.rows import append_newline_per_line, append_newline_per_view


@tokenizers.register(
    "slow_fast",
    source="https://arxiv.org/abs/2410.02713",
    tiny={"max_frames": 4, "every": 2},
    verified_against="LLaVA-NeXT (golden videos)",
)
@dataclass(frozen=True, slots=True)
class SlowFast(FrameTokenizer):
    """Frames of a video in two sizes: every `every`-th pooled as usual (slow), the others more (fast), as in LLaVA-Video.

    Fast frames are pooled by the same pooling at the stride `fast_stride`. Each line of each frame ends with a learned
    `newline` and each frame with a learned `faster_token`: 211 or 57 tokens for 27x27 cells pooled bilinear, 2440 for 32
    frames. `max_frames`, `fps` and `force` choose frames as in 'frames'. LLaVA-NeXT has this as `add_faster_video`, which
    stops with a NameError; this is what its code intends.
    """

    every: int = 10
    fast_stride: int = 4
    name: ClassVar[str] = "slow_fast"
    learned_tokens: ClassVar[tuple[str, ...]] = ("newline", "faster_token")

    def __post_init__(self) -> None:
        FrameTokenizer.__post_init__(self)
        if self.every < 1:
            raise ConfigError(
                f"tokenizer 'slow_fast': every={self.every}; write 1 (no fast frames) or more.", settings=["every"]
            )
        if self.fast_stride < 1:
            raise ConfigError(
                f"tokenizer 'slow_fast': fast_stride={self.fast_stride}; write 1 or more.", settings=["fast_stride"]
            )

    def find_faults(self) -> list[Fault]:
        if not self.spatial:
            message = "tokenizer 'slow_fast' pools frames and ends their lines, but the features have no image order;"
            return [Fault("", f"{message} use the tokenizer 'frames' or a projector that keeps the grid.")]
        if not (is_dataclass(self.pooling) and any(field.name == "stride" for field in fields(self.pooling))):
            message = (
                f"tokenizer 'slow_fast': the pooling {type(self.pooling).__name__} has no stride to pool fast frames"
            )
            return [Fault("", f"{message} more; use bilinear, average or max.")]
        return FrameTokenizer.find_faults(self) or find_pooling_faults(
            self.name, self.fast_pooling, self.grid, self.spatial
        )

    @property
    def fast_pooling(self) -> Pooling:
        """The pooling of fast frames."""
        slow: Any = self.pooling
        return replace(slow, stride=self.fast_stride)

    def plan(self, visual: VisualShape) -> VisualPlan:
        views = self.make_views(visual)
        slow, fast = (self._count_frame_tokens(pooling) for pooling in (self.pooling, self.fast_pooling))
        num_slow = -(-len(views) // self.every)
        return VisualPlan(views, num_slow * slow + (len(views) - num_slow) * fast)

    def _count_frame_tokens(self, pooling: Pooling) -> int:
        cells = pooling.out_grid(self.grid)
        return cells.height * (cells.width + 1) + 1

    def assemble(self, x: Tensor, plan: VisualPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(frames, h, w, d) to (plan.num_tokens, d)."""
        slow, fast = self._split_frames(x)
        return self._arrange_rows(self.pooling(slow), self.fast_pooling(fast) if len(fast) else fast, learned_tokens)

    lowerable_assemble = assemble

    def lower_plan(self, plan: VisualPlan) -> LoweredPlan | None:
        slow_stencil, fast_stencil = (find_stencil(p, self.grid) for p in (self.pooling, self.fast_pooling))
        if slow_stencil is None or fast_stencil is None:
            return None
        k = max(slow_stencil.reads_per_cell, fast_stencil.reads_per_cell)
        slow, fast = self._split_frames(make_cell_codes(len(plan.views), self.grid))
        slow, fast = slow_stencil.pad_to_k(k)(slow), fast_stencil.pad_to_k(k)(fast)
        return LoweredPlan.from_codes(self._arrange_rows(slow, fast, make_learned_token_codes(self.learned_tokens, k)))

    def _split_frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slow and fast frames."""
        return x[:: self.every], x[[n for n in range(len(x)) if n % self.every]]

    def _arrange_rows(self, slow: Tensor, fast: Tensor, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        frames = (
            iter(_append_separators(slow, learned_tokens)),
            iter(_append_separators(fast, learned_tokens) if len(fast) else ()),
        )
        return torch.cat([next(frames[n % self.every > 0]) for n in range(len(slow) + len(fast))])


def _append_separators(x: Tensor, learned_tokens: Mapping[str, Tensor]) -> Tensor:
    """(frames, h, w, d) to (frames, h * (w + 1) + 1, d): a newline after each line, a faster_token after each frame."""
    lines = rearrange(append_newline_per_line(x, learned_tokens["newline"]), "(n lines) d -> n lines 1 d", n=len(x))
    return rearrange(append_newline_per_view(lines, learned_tokens["faster_token"]), "(n rows) d -> n rows d", n=len(x))
