from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmblocks.components import poolings
from mmblocks.shapes import Size


@poolings.register("none", source="https://arxiv.org/abs/2304.08485", verified_against="none: it computes nothing")
@dataclass(frozen=True)
class NoPooling:
    """Keep every cell of the grid."""

    linear: ClassVar[bool] = True

    def out_grid(self, grid: Size) -> Size:
        return grid

    def __call__(self, x: Tensor) -> Tensor:
        return x
