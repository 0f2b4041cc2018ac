from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import poolings
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


def require_stride(name: str, stride: int) -> None:
    """Refuse a stride under one."""
    if stride < 1:
        raise ConfigError(
            f"pooling {name!r}: stride={stride}; cells are merged in groups of 1 or more, so stride >= 1.",
            settings=["stride"],
        )


@poolings.register(
    "bilinear", source="https://arxiv.org/abs/2408.03326", verified_against="LLaVA-NeXT (golden video, modules)"
)
@dataclass(frozen=True)
class BilinearPooling:
    """Shrink the grid by bilinear interpolation, as LLaVA-OneVision does with frames: 27x27 to 14x14 at stride 2.

    The new side is ceil(side / stride); no antialiasing, corners not aligned (get_2dPool in LLaVA-NeXT).
    """

    stride: int = 2
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_stride("bilinear", self.stride)

    def out_grid(self, grid: Size) -> Size:
        return Size(-(-grid.height // self.stride), -(-grid.width // self.stride))

    def __call__(self, x: Tensor) -> Tensor:
        target = self.out_grid(Size(x.shape[1], x.shape[2]))
        # A permuted view, not a copy: interpolate then takes its channels-last kernel.
        shrunk = F.interpolate(rearrange(x, "n h w d -> n d h w"), size=tuple(target), mode="bilinear")
        return rearrange(shrunk, "n d h w -> n h w d")
