"""Laws of poolings."""

from __future__ import annotations

from typing import Any

import torch

from mmblocks.errors import ConfigError
from mmblocks.shapes import Size
from mmblocks.testing.laws import Subject, check_that

GRIDS = (Size(27, 27), Size(24, 24), Size(4, 6), Size(3, 3), Size(2, 5))


def check_output_grid(subject: Subject) -> None:
    """`out_grid` is the grid that comes out, or a ConfigError where it can take none; channels are kept."""
    pooling = subject.build()
    check_that(bool(_list_accepted_grids(pooling)), f"It takes none of the grids {', '.join(map(str, GRIDS))}.")
    for grid in GRIDS:
        if refusal := _find_refusal(pooling, grid):
            check_that(str(grid) in refusal, f"It refuses a grid of {grid} without naming it: {refusal}")
            continue
        said, seen = pooling.out_grid(grid), tuple(pooling(_make_cells(2, grid, 5)).shape)
        check_that(seen == (2, *said, 5), f"On {grid} cells out_grid says {said}, the output is {seen}.")


def check_linearity(subject: Subject) -> None:
    """`linear` is true exactly if pooling and an affine map per token may change places."""
    pooling, head = subject.build(), torch.nn.Linear(5, 7).double()
    cells = {grid: _make_cells(2, grid, 5).double() for grid in _list_accepted_grids(pooling)}
    bent = [grid for grid, x in cells.items() if not torch.allclose(head(pooling(x)), pooling(head(x)))]
    if pooling.linear:
        check_that(not bent, f"It says linear, but on {', '.join(map(str, bent))} cells they do not.")
    else:
        check_that(bool(bent), "It says it is not linear, but they do on every grid that was tried.")


def check_constant_input(subject: Subject) -> None:
    """Cells that are all alike stay as they are: weights sum to one."""
    pooling = subject.build()
    grid = _list_accepted_grids(pooling)[0]
    pooled = pooling(torch.full((1, *grid, 2), 3.25))
    check_that(torch.allclose(pooled, torch.tensor(3.25)), f"3.25 everywhere becomes {pooled.flatten()[0]:.4f}.")


def check_view_isolation(subject: Subject) -> None:
    """A view is pooled alike whatever stands beside it."""
    pooling = subject.build()
    x = _make_cells(3, _list_accepted_grids(pooling)[0], 4)
    check_that(torch.equal(pooling(x)[1:2], pooling(x[1:2])), "Beside two others it differs from itself alone.")


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


def _list_accepted_grids(pooling: Any) -> list[Size]:
    return [grid for grid in GRIDS if not _find_refusal(pooling, grid)]


def _find_refusal(pooling: Any, grid: Size) -> str:
    """Why it does not take a grid; empty if it does."""
    try:
        pooling.out_grid(grid)
    except ConfigError as why:
        return str(why)
    return ""


def _make_cells(views: int, grid: Size, dim: int) -> torch.Tensor:
    return torch.randn(views, *grid, dim, generator=torch.Generator().manual_seed(1))
