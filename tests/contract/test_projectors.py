"""Laws that every projector obeys, whoever wrote it."""

import pytest
import torch

from mmblocks.components import projectors
from mmblocks.shapes import Size

GRIDS = [Size(4, 4), Size(3, 6), Size(1, 1)]
IN_DIM = OUT_DIM = 8  # equal, so that identity can take part


def build(name, grid):
    return projectors.build({"name": name, **projectors[name].tiny}, in_dim=IN_DIM, out_dim=OUT_DIM, grid=grid)


@pytest.fixture(params=list(projectors))
def name(request):
    return request.param


@pytest.mark.parametrize("grid", GRIDS)
def test_out_grid_says_what_comes_out(name, grid):
    projector = build(name, grid)
    out = projector(torch.randn(3, *grid, IN_DIM))
    assert out.shape == (3, *projector.out_grid(grid), OUT_DIM)


def test_a_projector_is_its_head_after_its_body(name):
    projector, x = build(name, Size(4, 4)), torch.randn(2, 4, 4, IN_DIM)
    assert torch.equal(projector(x), projector.head(projector.body(x)))


def test_the_head_is_one_affine_map_per_token(name):
    """Weighted sums with weights that sum to one may then move in front of it."""
    head = build(name, Size(4, 4)).head.double()
    a, b = (build(name, Size(4, 4)).double().body(torch.randn(1, 4, 4, IN_DIM).double()) for _ in range(2))
    torch.testing.assert_close(head(0.25 * a + 0.75 * b), 0.25 * head(a) + 0.75 * head(b))


def test_gradients_reach_every_parameter(name):
    projector = build(name, Size(4, 4))
    projector(torch.randn(2, 4, 4, IN_DIM, requires_grad=True)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())


def test_views_do_not_see_each_other(name):
    projector, x = build(name, Size(4, 4)), torch.randn(3, 4, 4, IN_DIM)
    torch.testing.assert_close(projector(x)[1:2], projector(x[1:2]), rtol=0, atol=1e-6)


def test_it_runs_in_bfloat16(name):
    out = build(name, Size(4, 4)).to(torch.bfloat16)(torch.randn(1, 4, 4, IN_DIM, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_its_weights_can_be_carried_over(name):
    one, other, x = build(name, Size(4, 4)), build(name, Size(4, 4)), torch.randn(1, 4, 4, IN_DIM)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
