from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import poolings
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


@poolings.register(
    "adaptive_average",
    source="https://arxiv.org/abs/2405.20985",
    tiny={"rows": 2, "columns": 2},
    verified_against="means in NumPy over the cells that a new cell covers",
)
@dataclass(frozen=True)
class AdaptiveAveragePooling:
    """Means down to a grid of rows x columns, whatever the encoder's grid is, as DeCo compresses its tokens.

    New cell i covers the old rows floor(i * h / rows) to ceil((i + 1) * h / rows), so that neighbours share cells where
    h is no multiple. Grids with fewer rows or columns are refused.
    """

    rows: int = 12
    columns: int = 12
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("columns", self.columns)):
            if value < 1:
                raise ConfigError(f"pooling 'adaptive_average': {name}={value}; write {name} >= 1.", settings=[name])

    def out_grid(self, grid: Size) -> Size:
        if grid.height < self.rows or grid.width < self.columns:
            raise ConfigError(
                f"pooling 'adaptive_average': rows={self.rows} and columns={self.columns} are more than a grid of {grid} "
                f"has; write at most rows={grid.height} and columns={grid.width}.",
                settings=["rows", "columns"],
            )
        return Size(self.rows, self.columns)

    def __call__(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(rearrange(x, "n h w d -> n d h w"), (self.rows, self.columns))
        return rearrange(means, "n d h w -> n h w d")


poolings.preset("adaptive_average_8", of="adaptive_average", rows=8, columns=8)
poolings.preset("adaptive_average_1", of="adaptive_average", rows=1, columns=1)
