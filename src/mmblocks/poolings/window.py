from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import poolings
from mmblocks.errors import ConfigError
from mmblocks.poolings.bilinear import require_stride
from mmblocks.shapes import Size


def _count_whole_windows(grid: Size, stride: int) -> Size:
    """How many whole windows fit; cells beyond them are not seen (27 at stride 2 gives 13)."""
    if min(grid) < stride:
        raise ConfigError(
            f"a window of {stride}x{stride} cells does not fit in a grid of {grid}; choose a stride of at most {min(grid)}."
        )
    return Size(grid.height // stride, grid.width // stride)


def _pool_maps(pool: Callable[..., Tensor], x: Tensor, stride: int) -> Tensor:
    return rearrange(pool(rearrange(x, "n h w d -> n d h w"), stride), "n d h w -> n h w d")


@poolings.register(
    "average",
    source="https://llava-vl.github.io/blog/2024-04-30-llava-next-video/",
    verified_against="LLaVA-NeXT (golden video, modules)",
)
@dataclass(frozen=True)
class AveragePooling:
    """Mean of each whole window of stride x stride cells: 27x27 to 13x13 at stride 2, as LLaVA-NeXT-Video does."""

    stride: int = 2
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_stride("average", self.stride)

    def out_grid(self, grid: Size) -> Size:
        return _count_whole_windows(grid, self.stride)

    def __call__(self, x: Tensor) -> Tensor:
        return _pool_maps(F.avg_pool2d, x, self.stride)


@poolings.register(
    "max", source="https://github.com/LLaVA-VL/LLaVA-NeXT", verified_against="LLaVA-NeXT (golden video, modules)"
)
@dataclass(frozen=True)
class MaxPooling:
    """Largest value per channel in each whole window of stride x stride cells: 27x27 to 13x13 at stride 2."""

    stride: int = 2
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_stride("max", self.stride)

    def out_grid(self, grid: Size) -> Size:
        return _count_whole_windows(grid, self.stride)

    def __call__(self, x: Tensor) -> Tensor:
        return _pool_maps(F.max_pool2d, x, self.stride)


poolings.preset("average_3", of="average", stride=3)
poolings.preset("average_4", of="average", stride=4)
