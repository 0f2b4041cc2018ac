from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmblocks.components import Pooling, tokenizers
from mmblocks.faults import Fault
from mmblocks.shapes import VisualPlan, VisualShape
from mmblocks.tokenizers.frame_tokenizer import find_pooling_faults
from mmblocks.tokenizers.image_tokenizer import ImageTokenizer
from mmblocks.tokenizers.inline_text import require_format
from mmblocks.tokenizers.lowering import LoweredPlan, lower_permutation, lower_pooling
from mmblocks.tokenizers.one_view import FRAMINGS
from mmblocks.tokenizers.rows import append_newline, to_rows


@tokenizers.register(
    "scene_views", source="https://arxiv.org/abs/2407.07895", verified_against="the tokenizer 'pad' (golden prompts)"
)
@dataclass(frozen=True, slots=True)
class SceneViews(ImageTokenizer):
    """A scene seen from several places: each image as one view, behind a text with the camera's place.

    The place is the note of the image ({"type": "image", "image": ..., "note": "camera at (1.2, 0.4), facing east"}),
    written into `pose`; an image without a note has no such text. With `pooled` each view is pooled as frames are, so that
    many fit; with `newline` a learned newline ends each. Without notes and newlines these are LLaVA-NeXT-Interleave's
    tokens of a scene. Positions are not added to features (as LLaVA-3D does).
    """

    spatial: bool
    pooling: Pooling
    framing: Literal["squashed", "cropped", "padded"] = "padded"
    pooled: bool = False
    newline: bool = False
    pose: str = "{note}: "

    def __post_init__(self) -> None:
        require_format("scene_views", "pose", self.pose, {"note": "here"}, required="note")

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        return ("newline",) if self.newline else ()

    def find_faults(self) -> list[Fault]:
        return find_pooling_faults("scene_views", self.pooling, self.grid, self.spatial) if self.pooled else []

    def plan(self, visual: VisualShape) -> VisualPlan:
        view = FRAMINGS[self.framing](0, visual.size, self.view_px)
        cells = self.pooling.out_grid(self.grid) if self.pooled else self.grid
        texts = ((0, self.pose.format(note=visual.note)),) if visual.note else ()
        return VisualPlan((view,), cells.area + int(self.newline), inline_texts=texts)

    def assemble(self, x: Tensor, plan: VisualPlan, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(1, h, w, d) to (plan.num_tokens, d)."""
        return self._arrange_rows(self.pooling(x) if self.pooled else x, learned_tokens)

    lowerable_assemble = assemble

    def lower_plan(self, plan: VisualPlan) -> LoweredPlan | None:
        return lower_pooling(self, plan, self._arrange_rows) if self.pooled else lower_permutation(self, plan)

    def _arrange_rows(self, x: Tensor, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        return append_newline(to_rows(x), learned_tokens["newline"]) if self.newline else to_rows(x)


tokenizers.preset("scene_views_pooled", of="scene_views", pooled=True)
