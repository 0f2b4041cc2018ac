"""Conformance checks of poolings."""

import torch

from mmblocks.components import Pooling
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size
from mmblocks.testing.conformance import Subject, check_that

GRIDS = (Size(27, 27), Size(24, 24), Size(4, 6), Size(3, 3), Size(2, 5))


def check_output_grid(subject: Subject) -> None:
    """`out_grid` is the grid that comes out, or a ConfigError where it can take none; channels are kept."""
    pooling = subject.build()
    check_that(bool(_list_accepted_grids(pooling)), f"It takes none of the grids {', '.join(map(str, GRIDS))}.")
    for grid in GRIDS:
        if refusal := _find_refusal(pooling, grid):
            check_that(str(grid) in refusal, f"It refuses a grid of {grid} without naming it: {refusal}")
            continue
        stated, seen = pooling.out_grid(grid), tuple(pooling(_make_cells(2, grid, 5)).shape)
        check_that(seen == (2, *stated, 5), f"On {grid} cells out_grid says {stated}, the output is {seen}.")


def check_linearity(subject: Subject) -> None:
    """`linear` is true exactly if the pooling commutes with an affine map per token."""
    pooling, head = subject.build(), torch.nn.Linear(5, 7).double()
    cells = {grid: _make_cells(2, grid, 5).double() for grid in _list_accepted_grids(pooling)}
    wrong = [grid for grid, x in cells.items() if not torch.allclose(head(pooling(x)), pooling(head(x)))]
    if pooling.linear:
        check_that(not wrong, f"It has linear=True, but on {', '.join(map(str, wrong))} cells it does not.")
    else:
        check_that(bool(wrong), "It has linear=False, but it does on every grid that was tried.")


def check_constant_input(subject: Subject) -> None:
    """Equal cells stay as they are: weights sum to one."""
    pooling = subject.build()
    grid = _list_accepted_grids(pooling)[0]
    pooled = pooling(torch.full((1, *grid, 2), 3.25))
    check_that(torch.allclose(pooled, torch.tensor(3.25)), f"3.25 everywhere becomes {pooled.flatten()[0]:.4f}.")


def check_view_isolation(subject: Subject) -> None:
    """A view is pooled in the same way in any batch."""
    pooling = subject.build()
    x = _make_cells(3, _list_accepted_grids(pooling)[0], 4)
    check_that(torch.equal(pooling(x)[1:2], pooling(x[1:2])), "In a batch of three it differs from itself alone.")


def check_gradients(subject: Subject) -> None:
    """Gradients reach the features."""
    pooling = subject.build()
    x = _make_cells(1, _list_accepted_grids(pooling)[0], 4).requires_grad_()
    pooling(x).sum().backward()
    check_that(x.grad is not None and bool(x.grad.abs().sum() > 0), "None arrive.")


def check_bfloat16(subject: Subject) -> None:
    """It runs in bfloat16 and gives finite bfloat16."""
    pooling = subject.build()
    out = pooling(_make_cells(1, _list_accepted_grids(pooling)[0], 4).bfloat16())
    check_that(out.dtype == torch.bfloat16, f"It gives {out.dtype}.")
    check_that(bool(out.isfinite().all()), "Some numbers are not finite.")


CHECKS = (
    check_output_grid,
    check_linearity,
    check_constant_input,
    check_view_isolation,
    check_gradients,
    check_bfloat16,
)


def _list_accepted_grids(pooling: Pooling) -> list[Size]:
    return [grid for grid in GRIDS if not _find_refusal(pooling, grid)]


def _find_refusal(pooling: Pooling, grid: Size) -> str:
    """Why it does not take a grid; empty if it does."""
    try:
        pooling.out_grid(grid)
    except ConfigError as refusal:
        return str(refusal)
    return ""


def _make_cells(views: int, grid: Size, dim: int) -> torch.Tensor:
    return torch.randn(views, *grid, dim, generator=torch.Generator().manual_seed(1))
