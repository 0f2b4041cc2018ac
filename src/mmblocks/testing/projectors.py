"""Conformance checks of projectors."""

from typing import Any

import torch

from mmblocks.batch import Instructions
from mmblocks.components import InstructedProjector, PerTokenProjector, Projector, has_capability
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size
from mmblocks.testing.conformance import Subject, check_that, find_silent_parameters

IN_DIM = OUT_DIM = 8
"""Equal, so that a projector that computes nothing can be tested too."""
GRIDS = (Size(4, 4), Size(6, 6), Size(3, 6), Size(5, 5), Size(1, 17), Size(1, 1))


def check_output_grid(subject: Subject) -> None:
    """`out_grid` is the grid that comes out, or a ConfigError where it can take none; views are kept."""
    refusals = {grid: _find_refusal(subject, grid) for grid in GRIDS}
    accepted = [grid for grid in GRIDS if not refusals[grid]]
    check_that(bool(accepted), f"It takes none of the grids {', '.join(map(str, GRIDS))}.")
    for grid, refusal in refusals.items():
        check_that(not refusal or str(grid) in refusal, f"It refuses a grid of {grid} without naming it: {refusal}")
    for grid in accepted:
        projector = build_projector(subject, grid)
        stated, seen = projector.out_grid(grid), tuple(apply_projector(projector, make_features(3, grid)).shape)
        check_that(isinstance(stated, Size), f"On {grid} cells out_grid gives {stated!r}, not a Size.")
        check_that(seen == (3, *stated, OUT_DIM), f"On {grid} cells out_grid says {stated}, the output is {seen}.")


def check_training_shape(subject: Subject) -> None:
    """It gives as many tokens in training as in evaluation: they are counted beforehand."""
    projector, x = build_with_features(subject)
    evaluated, trained = apply_projector(projector, x).shape, apply_projector(projector.train(), x).shape
    check_that(evaluated == trained, f"In evaluation it gives {tuple(evaluated)}, in training {tuple(trained)}.")


def check_grid_without_order(subject: Subject) -> None:
    """With `spatial = False` its grid is one row: Size(1, n)."""
    projector, x = build_with_features(subject)
    grid = projector.out_grid(Size(*x.shape[1:3]))
    check_that(projector.spatial or grid.height == 1, f"It gives {grid} cells.")


def check_body_and_head(subject: Subject) -> None:
    """forward(x) == head(body(x))."""
    projector, x = build_with_features(subject)
    again = projector.head(apply_body(projector, x))
    check_that(torch.equal(apply_projector(projector, x), again), f"They differ on {tuple(x.shape)}.")


def check_affine_head(subject: Subject) -> None:
    """The head is one affine map per token, so weighted sums may move in front of it."""
    projector, x = build_with_features(subject)
    head = projector.head.double()
    a, b = (0.5 + torch.randn_like(apply_body(projector, x), dtype=torch.float64) for _ in range(2))
    apart = (head(0.25 * a + 0.75 * b) - (0.25 * head(a) + 0.75 * head(b))).abs().max()
    check_that(bool(apart < 1e-8), f"A mix of two inputs is {apart:.2e} away from the mix of their outputs.")


def check_per_token_body(subject: Subject) -> None:
    """With `per_token = True` its body maps (cells, in_dim), each by itself, so that some may be left out."""
    projector, x = build_with_features(subject)
    if not has_capability(projector, PerTokenProjector):
        return
    some = slice(None, None, 2)
    apart = (projector.body(x.flatten(0, -2)[some]) - apply_body(projector, x).flatten(0, -2)[some]).abs().max()
    check_that(bool(apart <= 1e-5), f"Without every other cell those that stay are {apart:.2e} away.")


def check_gradients(subject: Subject) -> None:
    """Gradients reach every parameter, and the features."""
    projector, x = build_with_features(subject)
    x.requires_grad_()
    apply_projector(projector.train(), x).square().sum().backward()
    check_that(not (silent := find_silent_parameters(projector)), f"None reaches {', '.join(silent)}.")
    check_that(x.grad is not None and bool(x.grad.abs().sum() > 0), "None reaches the features.")


def check_view_isolation(subject: Subject) -> None:
    """A view gives the same rows in any batch."""
    projector, x = build_with_features(subject, views=3)
    together, alone = apply_projector(projector, x)[1:2], apply_projector(projector, x[1:2])
    apart = (together - alone).abs().max()
    check_that(bool(apart <= 1e-5), f"In a batch of three it is {apart:.2e} away from itself alone.")


def check_bfloat16(subject: Subject) -> None:
    """It runs in bfloat16 and gives finite bfloat16."""
    projector, x = build_with_features(subject)
    out = apply_projector(projector.to(torch.bfloat16), x.bfloat16())
    check_that(out.dtype == torch.bfloat16, f"It gives {out.dtype}.")
    check_that(bool(out.isfinite().all()), "Some numbers are not finite.")


def check_state_dict(subject: Subject) -> None:
    """Its state dict makes another instance equal."""
    projector, x = build_with_features(subject)
    with torch.no_grad():
        for p in projector.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other, _ = build_with_features(subject)
    other.load_state_dict(projector.state_dict())
    check_that(torch.equal(apply_projector(projector, x), apply_projector(other, x)), "The copy gives other numbers.")


def check_meta_device(subject: Subject) -> None:
    """It can be built on the meta device, and has the same grid there."""
    grid = next(g for g in GRIDS if not _find_refusal(subject, g))
    with torch.device("meta"):
        blueprint = build_projector(subject, grid)
    check_that(all(p.is_meta for p in blueprint.parameters()), "Some parameters are not on the meta device.")
    on_meta, on_cpu = blueprint.out_grid(grid), build_projector(subject, grid).out_grid(grid)
    check_that(on_meta == on_cpu, f"It is {on_meta} there and {on_cpu} on CPU.")


CHECKS = (
    check_output_grid,
    check_training_shape,
    check_grid_without_order,
    check_body_and_head,
    check_affine_head,
    check_per_token_body,
    check_gradients,
    check_view_isolation,
    check_bfloat16,
    check_state_dict,
    check_meta_device,
)


def build_projector(subject: Subject, grid: Size) -> Any:
    """The projector between IN_DIM and OUT_DIM for a grid, in evaluation."""
    return subject.build(in_dim=IN_DIM, out_dim=OUT_DIM, grid=grid).eval()


def make_features(views: int, grid: Size) -> torch.Tensor:
    """(views, *grid, IN_DIM) of noise, the same every time."""
    return torch.randn(views, *grid, IN_DIM, generator=torch.Generator().manual_seed(1))


def build_with_features(subject: Subject, views: int = 2) -> tuple[Any, torch.Tensor]:
    """The projector for the first grid that it takes, and features for it."""
    grid = next(grid for grid in GRIDS if not _find_refusal(subject, grid))
    return build_projector(subject, grid), make_features(views, grid)


def _find_refusal(subject: Subject, grid: Size) -> str:
    """Why it does not take a grid; empty if it does."""
    try:
        build_projector(subject, grid).out_grid(grid)
    except ConfigError as refusal:
        return str(refusal)
    return ""


def apply_projector(projector: Projector, x: torch.Tensor) -> torch.Tensor:
    """Its output; an `InstructedProjector` reads the same question for every view."""
    return projector(x, *_make_instructions(projector, x))


def apply_body(projector: Projector, x: torch.Tensor) -> torch.Tensor:
    """The output of its body, for the same question."""
    return projector.body(x, *_make_instructions(projector, x))


def _make_instructions(projector: Projector, x: torch.Tensor) -> tuple[Instructions, ...]:
    """The same question about every view, for an `InstructedProjector`."""
    return (
        (Instructions.from_ids([torch.tensor([5, 6, 7])] * len(x)),)
        if has_capability(projector, InstructedProjector)
        else ()
    )
