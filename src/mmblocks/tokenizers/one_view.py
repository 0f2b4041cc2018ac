from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmblocks.components import tokenizers
from mmblocks.geometry.views import make_cropped_view, make_padded_view, make_squashed_view
from mmblocks.shapes import Size, VisualPlan, VisualShape
from mmblocks.tokenizers.image_tokenizer import ImageTokenizer
from mmblocks.tokenizers.rows import append_newline, to_rows

FRAMINGS = {"squashed": make_squashed_view, "cropped": make_cropped_view, "padded": make_padded_view}


@dataclass(frozen=True, slots=True)
class OneView(ImageTokenizer):
    """An image as a single view, its cells row by row, and one newline at the end with `newline`. Takes any grid."""

    framing: Literal["squashed", "cropped", "padded"]
    newline: bool

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        return ("newline",) if self.newline else ()

    def plan(self, visual: VisualShape) -> VisualPlan:
        view = FRAMINGS[self.framing](0, visual.size, self.view_px)
        return VisualPlan((view,), self.grid.area + int(self.newline))

    def assemble(self, x: Tensor, plan: VisualPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(1, h, w, d) to (plan.num_tokens, d)."""
        return append_newline(to_rows(x), learned_tokens["newline"]) if self.newline else to_rows(x)

    lowerable_assemble = assemble


@tokenizers.register(
    "square", source="https://arxiv.org/abs/2304.08485", verified_against="LLaVA-NeXT (golden prompts)"
)
def square(view_px: Size, grid: Size, squash: bool, newline: bool = False) -> OneView:
    """One view made by the encoder's own processor alone: squashed (SigLIP) or cut to its middle (CLIP), as in LLaVA v1.

    With `newline` a learned newline ends each image.
    """
    return OneView(view_px, grid, "squashed" if squash else "cropped", newline)


@tokenizers.register("pad", source="https://arxiv.org/abs/2310.03744", verified_against="LLaVA-NeXT (golden prompts)")
def pad(view_px: Size, grid: Size, newline: bool = False) -> OneView:
    """One view of the whole image in the middle of a square in the encoder's mean colour, as in LLaVA-1.5.

    With `newline` a learned newline ends each image: 730 tokens for 27x27 cells, as LLaVA-OneVision trains on several images.
    """
    return OneView(view_px, grid, "padded", newline)


tokenizers.preset("pad_newline", of="pad", newline=True)
