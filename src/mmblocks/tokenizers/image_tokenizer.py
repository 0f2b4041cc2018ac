"""What the tokenizers of images share. Annotations are objects here: settings of subclasses are read in other modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mmblocks.faults import Fault
from mmblocks.shapes import Scenario, Size, VisualPlan
from mmblocks.tokenizers.lowering import LoweredPlan, lower_permutation
from mmblocks.tokenizers.rows import to_rows


@dataclass(frozen=True, slots=True)
class ImageTokenizer:
    """A tokenizer of images whose tokens are the cells of its views, view by view, row by row. Subclasses have `plan`.

    One with another `assemble` that still only moves rows writes `lowerable_assemble = assemble` below it.
    """

    view_px: Size
    grid: Size
    scenarios: ClassVar[frozenset[Scenario]] = frozenset({"image", "multi_image"})

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        return ()

    def find_faults(self) -> list[Fault]:
        return []

    def count_tokens(self, plan: VisualPlan) -> int:
        return plan.num_tokens

    def assemble(self, x: Tensor, plan: Any, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(views, h, w, d) to (plan.num_tokens, d)."""
        return to_rows(x)

    lowerable_assemble = assemble

    def lower_plan(self, plan: Any) -> LoweredPlan | None:
        return lower_permutation(self, plan)
