from torch import nn

from mmblocks.components import projectors
from mmblocks.projectors._base import BodyAndHead, require_counts
from mmblocks.projectors._maps import MapConv2d, count_whole_windows
from mmblocks.projectors.mlp import make_linear_layers
from mmblocks.shapes import Size


class WindowedProjector(BodyAndHead):
    """A projector to one cell for each whole window of stride x stride cells."""

    name: str

    def __init__(self, stride: int) -> None:
        super().__init__()
        require_counts(self.name, stride=stride)
        self.stride = stride

    def out_grid(self, grid: Size) -> Size:
        return count_whole_windows(self.name, grid, self.stride)


@projectors.register(
    "conv_pooler", source="https://github.com/LLaVA-VL/LLaVA-NeXT", verified_against="LLaVA-NeXT (golden modules)"
)
class ConvPooler(WindowedProjector):
    """A convolution over windows to the LLM's width, GELU, and a linear layer: LLaVA-NeXT's projector "pooler".

    Shape: (n, h, w, in_dim) -> (n, h // stride, w // stride, out_dim): 27x27 to 13x13.
    """

    name = "conv_pooler"

    def __init__(self, in_dim: int, out_dim: int, stride: int = 2) -> None:
        super().__init__(stride)
        self.body = nn.Sequential(MapConv2d(in_dim, out_dim, stride, stride), nn.GELU())
        self.head = nn.Linear(out_dim, out_dim)


@projectors.register(
    "strided_conv", source="https://github.com/LLaVA-VL/LLaVA-NeXT", verified_against="LLaVA-NeXT (golden modules)"
)
class StridedConv(WindowedProjector):
    """A convolution over windows of the features, then an MLP: LLaVA-NeXT's resampler spatial_pool in its mode conv.

    Shape: (n, h, w, in_dim) -> (n, h // stride, w // stride, out_dim). The convolution gives `channels` (null: in_dim);
    `depth` is the MLP's.
    """

    name = "strided_conv"

    def __init__(self, in_dim: int, out_dim: int, stride: int = 2, channels: int | None = None, depth: int = 2) -> None:
        super().__init__(stride)
        channels = in_dim if channels is None else channels
        require_counts(self.name, channels=channels)
        mlp, self.head = make_linear_layers(self.name, channels, out_dim, depth)
        self.body = nn.Sequential(MapConv2d(in_dim, channels, stride, stride), *mlp)
