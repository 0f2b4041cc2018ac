"""What projectors share that combine neighbouring cells."""

from einops import rearrange
from torch import Tensor, nn

from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


class MapConv2d(nn.Conv2d):
    """`nn.Conv2d` for maps with their channels last: (views, h, w, in) to (views, h2, w2, out)."""

    def forward(self, input: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(input, "n h w d -> n d h w")), "n d h w -> n h w d")


def count_whole_windows(name: str, grid: Size, stride: int) -> Size:
    """How many windows of stride x stride cells fit; cells beyond them are not read (27 at stride 2 gives 13)."""
    if min(grid) < stride:
        raise ConfigError(
            f"projector {name!r}: a window of stride={stride} cells a side does not fit in a grid of {grid}; "
            f"choose a stride of at most {min(grid)}, or an encoder with more cells.",
            settings=["stride"],
        )
    return Size(grid.height // stride, grid.width // stride)
