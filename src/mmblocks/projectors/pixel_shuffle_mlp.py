from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors._base import BodyAndHead, require_counts
from mmblocks.shapes import Size


class PixelShuffle(nn.Module):
    """factor x factor neighbours side by side in the channels of one cell, row by row."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "n (h i) (w j) d -> n h w (i j d)", i=self.factor, j=self.factor)


@projectors.register(
    "pixel_shuffle_mlp", source="https://arxiv.org/abs/2404.16821", verified_against="transformers InternVLModel"
)
class PixelShuffleMLP(BodyAndHead):
    """Cells merged 2x2 into wider ones, then LayerNorm and two linear layers: InternVL's connector from 1.5 on.

    Shape: (n, h, w, in_dim) -> (n, h / factor, w / factor, out_dim). Loses nothing, so it takes only grids that
    `factor` divides.
    """

    def __init__(self, in_dim: int, out_dim: int, factor: int = 2) -> None:
        super().__init__()
        require_counts("pixel_shuffle_mlp", factor=factor)
        self.factor = factor
        wide = in_dim * factor**2
        self.body = nn.Sequential(PixelShuffle(factor), nn.LayerNorm(wide), nn.Linear(wide, out_dim), nn.GELU())
        self.head = nn.Linear(out_dim, out_dim)

    def out_grid(self, grid: Size) -> Size:
        if grid.height % self.factor or grid.width % self.factor:
            fits = [f for f in range(2, min(grid) + 1) if not grid.height % f and not grid.width % f]
            cure = f"factor={fits[0]}, " if fits else ""
            raise ConfigError(
                f"projector 'pixel_shuffle_mlp': factor={self.factor} does not divide a grid of {grid}; "
                f"choose {cure}an encoder whose grid it divides, or a projector that takes any grid ('conv_pooler').",
                settings=["factor"],
            )
        return Size(grid.height // self.factor, grid.width // self.factor)
