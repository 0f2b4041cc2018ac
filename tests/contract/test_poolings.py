"""Laws that every pooling obeys."""

import pytest
import torch

from mmblocks.components import poolings
from mmblocks.shapes import Size

GRIDS = [Size(27, 27), Size(24, 24), Size(4, 6), Size(3, 3), Size(2, 5)]


@pytest.fixture(params=list(poolings))
def pooling(request):
    return poolings.build({"name": request.param, **poolings[request.param].tiny})


@pytest.mark.parametrize("grid", GRIDS)
def test_out_grid_says_what_comes_out(pooling, grid):
    assert pooling(torch.randn(2, *grid, 5)).shape == (2, *pooling.out_grid(grid), 5)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_linear_pooling_commutes_with_an_affine_map_and_no_other_claims_to(pooling, grid):
    head, x = torch.nn.Linear(5, 7).double(), torch.randn(2, *grid, 5).double()
    commutes = torch.allclose(head(pooling(x)), pooling(head(x)))
    assert commutes == pooling.linear


def test_a_constant_grid_stays_constant(pooling):
    assert torch.allclose(pooling(torch.full((1, 6, 6, 2), 3.25)), torch.tensor(3.25))


def test_frames_do_not_see_each_other(pooling):
    x = torch.randn(3, 6, 6, 4)
    assert torch.equal(pooling(x)[1:2], pooling(x[1:2]))


def test_gradients_flow_through(pooling):
    x = torch.randn(1, 6, 6, 4, requires_grad=True)
    pooling(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_the_sizes_of_the_family_are_met():
    sizes = {name: poolings.build(name).out_grid(Size(27, 27)).area for name in ("bilinear", "average", "max", "none")}
    assert sizes == {"bilinear": 196, "average": 169, "max": 169, "none": 729}
