from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.geometry.views import cropped, padded, squashed
from mmblocks.shapes import Scenario, Size, VisualPlan, VisualShape
from mmblocks.tokenizers.lowering import Lowered, moved
from mmblocks.tokenizers.rows import ended_by, rows_of

FRAMINGS = {"squashed": squashed, "cropped": cropped, "padded": padded}


@dataclass(frozen=True, slots=True)
class OneView:
    """A picture as a single view, its cells row by row, perhaps ended by one newline. Takes any grid."""

    view_px: Size
    grid: Size
    framing: Literal["squashed", "cropped", "padded"]
    newline: bool
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    @property
    def marks(self) -> tuple[str, ...]:
        return ("newline",) if self.newline else ()

    def reasons_against(self) -> list[str]:
        return []

    def plan(self, visual: VisualShape) -> VisualPlan:
        view = FRAMINGS[self.framing](0, visual.size, self.view_px)
        return VisualPlan((view,), self.grid.area + int(self.newline))

    def count(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: VisualPlan, marks: Mapping[str, Tensor]) -> Tensor:
        """(1, h, w, d) to (plan.num_tokens, d)."""
        return ended_by(rows_of(x), marks["newline"]) if self.newline else rows_of(x)

    def lower(self, plan: VisualPlan) -> Lowered:
        """What each token is made of, in integers."""
        return moved(self, plan)


@tokenizers.register("square", source="https://arxiv.org/abs/2304.08485", oracle="LLaVA-NeXT (golden prompts)")
def square(view_px: Size, grid: Size, squash: bool, newline: bool = False) -> OneView:
    """One view made by the encoder's own processor alone: squashed (SigLIP) or cut to its middle (CLIP), as in LLaVA v1.

    With `newline` a row ends each picture.
    """
    return OneView(view_px, grid, "squashed" if squash else "cropped", newline)


@tokenizers.register("pad", source="https://arxiv.org/abs/2310.03744", oracle="LLaVA-NeXT (golden prompts)")
def pad(view_px: Size, grid: Size, newline: bool = False) -> OneView:
    """One view of the whole picture in the middle of a square in the encoder's mean colour, as in LLaVA-1.5.

    With `newline` a row ends each picture: 730 tokens for 27x27 cells, as LLaVA-OneVision trains on several images.
    """
    return OneView(view_px, grid, "padded", newline)


tokenizers.preset("pad_newline", of="pad", newline=True)
