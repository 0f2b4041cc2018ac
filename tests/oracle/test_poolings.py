"""Poolings against Pillow's resize and means in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmblocks.components import poolings
from mmblocks.shapes import Size

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # fp32: other kernels sum in another order


def resized_by_pillow(x: Tensor, size: Size) -> Tensor:
    """Each channel of each view as a float image."""
    out = torch.empty(x.shape[0], *size, x.shape[3])
    for view, channel in np.ndindex(x.shape[0], x.shape[3]):
        picture = Image.fromarray(x[view, :, :, channel].numpy())
        shrunk = picture.resize((size.width, size.height), Image.Resampling.BILINEAR)
        out[view, :, :, channel] = torch.from_numpy(np.array(shrunk))
    return out


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("grid", [Size(27, 27), Size(24, 24), Size(7, 12)])
def test_antialiased_bilinear_pooling_shrinks_as_pillow_does(grid: Size, stride: int) -> None:
    pooling, x = poolings.build("bilinear_antialiased", stride=stride), torch.randn(2, *grid, 3)
    torch.testing.assert_close(pooling(x), resized_by_pillow(x, pooling.out_grid(grid)), **TOLERANCE)


@pytest.mark.parametrize("grid", [Size(24, 24), Size(27, 27), Size(5, 9)])
def test_adaptive_average_is_the_mean_of_the_cells_that_a_new_cell_covers(grid: Size) -> None:
    pooling, x = poolings.build("adaptive_average", rows=5, columns=4), torch.randn(2, *grid, 3)
    for i, j in np.ndindex(5, 4):
        rows = slice(i * grid.height // 5, -(-(i + 1) * grid.height // 5))
        columns = slice(j * grid.width // 4, -(-(j + 1) * grid.width // 4))
        torch.testing.assert_close(pooling(x)[:, i, j], x[:, rows, columns].mean(dim=(1, 2)), **TOLERANCE)


def test_adaptive_average_is_the_plain_average_where_windows_fit() -> None:
    x = torch.randn(2, 24, 24, 3)
    average = poolings.build("average", stride=2)
    torch.testing.assert_close(poolings.build("adaptive_average")(x), average(x), **TOLERANCE)
