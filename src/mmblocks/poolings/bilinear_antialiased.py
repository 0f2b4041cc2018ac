from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import poolings
from mmblocks.poolings.bilinear import require_stride
from mmblocks.shapes import Size


@poolings.register(
    "bilinear_antialiased",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html",
    verified_against="Pillow's bilinear resize of float images",
)
@dataclass(frozen=True)
class AntialiasedBilinearPooling:
    """Shrink the grid as Pillow shrinks images: 27x27 to 14x14 at stride 2, every cell having a part in the result.

    A triangle filter as wide as two new cells, where `bilinear` reads the four cells nearest to each sample. The new
    side is ceil(side / stride). Computed in float32 at least: PyTorch has no half-precision kernel for it on CPU.
    """

    stride: int = 2
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_stride("bilinear_antialiased", self.stride)

    def out_grid(self, grid: Size) -> Size:
        return Size(-(-grid.height // self.stride), -(-grid.width // self.stride))

    def __call__(self, x: Tensor) -> Tensor:
        target = self.out_grid(Size(x.shape[1], x.shape[2]))
        maps = rearrange(x, "n h w d -> n d h w").to(torch.promote_types(x.dtype, torch.float32))
        shrunk = F.interpolate(maps, size=tuple(target), mode="bilinear", antialias=True)
        return rearrange(shrunk, "n d h w -> n h w d").to(x.dtype)
