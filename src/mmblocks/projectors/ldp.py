from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors._base import BodyAndHead, require_counts
from mmblocks.projectors._maps import MapConv2d
from mmblocks.shapes import Size


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps that have them first, (n, d, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(input, "n d h w -> n h w d")), "n h w d -> n d h w")


def compute_squeeze_width(dim: int) -> int:
    """A quarter of the channels as a multiple of 8, not under 90% of the quarter (MobileNet's rule)."""
    quarter = dim // 4
    nearest = max(8, (quarter + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * quarter else nearest + 8


class SqueezeExcitation(nn.Module):
    """Each channel scaled by what a small MLP makes of the means of all channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(dim, compute_squeeze_width(dim), 1)
        self.fc2 = nn.Conv2d(compute_squeeze_width(dim), dim, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(means)) * x


class InvertedResidual(nn.Module):
    """MobileNetV3's block of one width: 3x3 per channel, squeeze and excitation, 1x1 over channels.

    Residual where the map keeps its size (stride 1).
    """

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        per_channel = nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False)
        over_channels = nn.Conv2d(dim, dim, 1, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(per_channel, ChannelNorm(dim), nn.Hardswish()),
            SqueezeExcitation(dim),
            nn.Sequential(over_channels, ChannelNorm(dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class LightweightDownsample(nn.Module):
    """An MLP per cell, then a block that keeps the map and one that halves it.

    Places 0 are empty so that the others have the numbers of the published weights.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
        self.mb_block = nn.Sequential(nn.Identity(), InvertedResidual(out_dim, 1), InvertedResidual(out_dim, 2))

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.mb_block(rearrange(self.mlp(x), "n h w d -> n d h w")), "n d h w -> n h w d")


@projectors.register(
    "ldp",
    source="https://arxiv.org/abs/2312.16886",
    verified_against="MobileVLM's arrangement of torchvision InvertedResidual and timm LayerNormAct2d",
)
class LDP(BodyAndHead):
    """MobileVLM's lightweight downsample projector: an MLP and two MobileNetV3 blocks, the second with stride 2.

    Shape: (n, h, w, in_dim) -> (n, ceil(h / 2), ceil(w / 2), out_dim): 576 tokens to 144. 18.94 M parameters from 1024
    to 2048 channels. The published weights are those of `body`, under model.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.body = LightweightDownsample(in_dim, out_dim)
        self.head = nn.Identity()

    def out_grid(self, grid: Size) -> Size:
        return Size(-(-grid.height // 2), -(-grid.width // 2))


class DownsampleWithPositions(nn.Module):
    """An MLP per cell, means down to `cells`, and a 3x3 convolution per channel added to them, which tells positions."""

    def __init__(self, in_dim: int, out_dim: int, cells: Size) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
        self.dwn = nn.AdaptiveAvgPool2d(tuple(cells))
        self.peg = MapConv2d(out_dim, out_dim, 3, padding=1, groups=out_dim)

    def forward(self, x: Tensor) -> Tensor:
        means = rearrange(self.dwn(rearrange(self.mlp(x), "n h w d -> n d h w")), "n d h w -> n h w d")
        return means + self.peg(means)


@projectors.register(
    "ldpv2",
    source="https://arxiv.org/abs/2402.03766",
    tiny={"rows": 2, "columns": 2},
    verified_against="MobileVLM's arrangement of timm Mlp, means in NumPy and timm PosConv",
)
class LDPv2(BodyAndHead):
    """MobileVLM V2's projector: an MLP, the mean of the cells down to a fixed grid, and a convolution for positions.

    Shape: (n, h, w, in_dim) -> (n, rows, columns, out_dim). 6.32 M parameters from 1024 to 2048 channels. Grids with
    fewer rows or columns are refused; the original would repeat their cells.
    """

    def __init__(self, in_dim: int, out_dim: int, rows: int = 12, columns: int = 12) -> None:
        super().__init__()
        require_counts("ldpv2", rows=rows, columns=columns)
        self.cells = Size(rows, columns)
        self.body = DownsampleWithPositions(in_dim, out_dim, self.cells)
        self.head = nn.Identity()

    def out_grid(self, grid: Size) -> Size:
        if grid.height < self.cells.height or grid.width < self.cells.width:
            raise ConfigError(
                f"projector 'ldpv2': rows={self.cells.height} and columns={self.cells.width} are more than a grid of "
                f"{grid} has; write at most rows={grid.height} and columns={grid.width}.",
                settings=["rows", "columns"],
            )
        return self.cells
