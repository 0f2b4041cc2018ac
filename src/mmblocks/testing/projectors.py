"""Laws of projectors."""

from __future__ import annotations

from typing import Any

import torch

from mmblocks.batch import Instructions
from mmblocks.components import needs_text
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size
from mmblocks.testing.laws import Subject, require, silent_parameters

IN_DIM = OUT_DIM = 8
"""Equal, so that a projector which only passes features on can take part."""
GRIDS = (Size(4, 4), Size(6, 6), Size(3, 6), Size(5, 5), Size(1, 17), Size(1, 1))


def it_states_its_grid(subject: Subject) -> None:
    """`out_grid` is the grid that comes out, or a ConfigError where it can take none; views are kept."""
    refusals = {grid: _refusal(subject, grid) for grid in GRIDS}
    taken = [grid for grid in GRIDS if not refusals[grid]]
    require(bool(taken), f"It takes none of the grids {', '.join(map(str, GRIDS))}.")
    for grid, said in refusals.items():
        require(not said or str(grid) in said, f"It refuses a grid of {grid} without naming it: {said}")
    for grid in taken:
        projector = built(subject, grid)
        said, seen = projector.out_grid(grid), tuple(projected(projector, features(3, grid)).shape)
        require(isinstance(said, Size), f"On {grid} cells out_grid gives {said!r}, not a Size.")
        require(seen == (3, *said, OUT_DIM), f"On {grid} cells out_grid says {said}, the output is {seen}.")


def it_trains_as_it_is_used(subject: Subject) -> None:
    """In training it gives as many tokens as in evaluation: they are counted before."""
    projector, x = takes_some(subject)
    used, trained = projected(projector, x).shape, projected(projector.train(), x).shape
    require(used == trained, f"In evaluation it gives {tuple(used)}, in training {tuple(trained)}.")


def a_grid_without_order_is_one_row(subject: Subject) -> None:
    """With `spatial = False` its tokens are one row: Size(1, n)."""
    projector, x = takes_some(subject)
    grid = projector.out_grid(Size(*x.shape[1:3]))
    require(projector.spatial or grid.height == 1, f"It gives {grid} cells.")


def it_is_its_head_after_its_body(subject: Subject) -> None:
    """forward(x) == head(body(x))."""
    projector, x = takes_some(subject)
    again = projector.head(bodied(projector, x))
    require(torch.equal(projected(projector, x), again), f"They differ on {tuple(x.shape)}.")


def its_head_is_affine(subject: Subject) -> None:
    """The head is one affine map per token, so weighted sums may move in front of it."""
    projector, x = takes_some(subject)
    head = projector.head.double()
    a, b = (0.5 + torch.randn_like(bodied(projector, x), dtype=torch.float64) for _ in range(2))
    apart = (head(0.25 * a + 0.75 * b) - (0.25 * head(a) + 0.75 * head(b))).abs().max()
    require(bool(apart < 1e-8), f"A mix of two inputs is {apart:.2e} away from the mix of their outputs.")


def its_body_says_whether_it_looks_around(subject: Subject) -> None:
    """With `per_token = True` its body maps (cells, in_dim), each by itself, so that some may be left out."""
    projector, x = takes_some(subject)
    if not getattr(projector, "per_token", False):
        return
    some = slice(None, None, 2)
    apart = (projector.body(x.flatten(0, -2)[some]) - bodied(projector, x).flatten(0, -2)[some]).abs().max()
    require(bool(apart <= 1e-5), f"Without every other cell those that stay are {apart:.2e} away.")


def gradients_reach_it(subject: Subject) -> None:
    """Gradients reach every parameter, and the features."""
    projector, x = takes_some(subject)
    x.requires_grad_()
    projected(projector.train(), x).square().sum().backward()
    require(not (silent := silent_parameters(projector)), f"None reaches {', '.join(silent)}.")
    require(x.grad is not None and bool(x.grad.abs().sum() > 0), "None reaches the features.")


def views_do_not_see_each_other(subject: Subject) -> None:
    """A view gives the same rows whatever stands beside it."""
    projector, x = takes_some(subject, views=3)
    together, alone = projected(projector, x)[1:2], projected(projector, x[1:2])
    apart = (together - alone).abs().max()
    require(bool(apart <= 1e-5), f"Beside two others it is {apart:.2e} away from itself alone.")


def it_runs_in_bfloat16(subject: Subject) -> None:
    """It runs in bfloat16 and gives finite bfloat16."""
    projector, x = takes_some(subject)
    out = projected(projector.to(torch.bfloat16), x.bfloat16())
    require(out.dtype == torch.bfloat16, f"It gives {out.dtype}.")
    require(bool(out.isfinite().all()), "Some numbers are not finite.")


def its_weights_are_all_of_it(subject: Subject) -> None:
    """Its state dict makes another instance equal."""
    projector, x = takes_some(subject)
    with torch.no_grad():
        for p in projector.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other, _ = takes_some(subject)
    other.load_state_dict(projector.state_dict())
    require(torch.equal(projected(projector, x), projected(other, x)), "The copy gives other numbers.")


def its_facts_need_no_memory(subject: Subject) -> None:
    """On the meta device it can be built and says the same grid."""
    grid = next(g for g in GRIDS if not _refusal(subject, g))
    with torch.device("meta"):
        blueprint = built(subject, grid)
    require(all(p.is_meta for p in blueprint.parameters()), "Some parameters are real.")
    said, here = blueprint.out_grid(grid), built(subject, grid).out_grid(grid)
    require(said == here, f"It says {said} there and {here} here.")


LAWS = (
    it_states_its_grid,
    it_trains_as_it_is_used,
    a_grid_without_order_is_one_row,
    it_is_its_head_after_its_body,
    its_head_is_affine,
    its_body_says_whether_it_looks_around,
    gradients_reach_it,
    views_do_not_see_each_other,
    it_runs_in_bfloat16,
    its_weights_are_all_of_it,
    its_facts_need_no_memory,
)


def built(subject: Subject, grid: Size) -> Any:
    """The projector between IN_DIM and OUT_DIM for a grid, in evaluation."""
    return subject.build(in_dim=IN_DIM, out_dim=OUT_DIM, grid=grid).eval()


def features(views: int, grid: Size) -> torch.Tensor:
    """(views, *grid, IN_DIM) of noise, the same every time."""
    return torch.randn(views, *grid, IN_DIM, generator=torch.Generator().manual_seed(1))


def takes_some(subject: Subject, views: int = 2) -> tuple[Any, torch.Tensor]:
    """The projector on the first of the grids that it takes, and features for it."""
    grid = next(grid for grid in GRIDS if not _refusal(subject, grid))
    return built(subject, grid), features(views, grid)


def _refusal(subject: Subject, grid: Size) -> str:
    """Why it does not take a grid; empty if it does."""
    try:
        built(subject, grid).out_grid(grid)
    except ConfigError as why:
        return str(why)
    return ""


def projected(projector: Any, x: torch.Tensor) -> torch.Tensor:
    """Its output; one that reads the question is asked the same about every view."""
    return projector(x, *_asked(projector, x))


def bodied(projector: Any, x: torch.Tensor) -> torch.Tensor:
    """What its head takes, for the same question."""
    return projector.body(x, *_asked(projector, x))


def _asked(projector: Any, x: torch.Tensor) -> tuple[Instructions, ...]:
    """The same question about every view, for a projector that reads it."""
    return (Instructions.of([torch.tensor([5, 6, 7])] * len(x)),) if needs_text(projector) else ()
