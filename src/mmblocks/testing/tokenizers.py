"""Laws of visual tokenizers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import VisionTokenizer, apply_before_projector, poolings
from mmblocks.faults import Fault, format_faults
from mmblocks.shapes import SCENARIOS, Size, VisualPlan, VisualShape
from mmblocks.testing.laws import Subject, check_that
from mmblocks.tokenizers.lowering import LoweredPlan, lower_tokenizer_plan

VIEW_PX = Size(28, 28)
GRIDS = ((Size(4, 4), True), (Size(3, 3), True), (Size(1, 5), False))
"""What encoder and projector may leave: cells, and whether they are in an image's order."""
POOLINGS = ("none", "bilinear")
DIM = 6
EXACT = 1e-12
"""float64: a lowered token is a sum of few products."""
SIZES = (
    *(Size(h, w) for h, w in product((1, 2, 27, 28, 29, 57), repeat=2)),
    *(Size(h, w) for h, w in ((1, 4000), (4000, 1), (700, 1000), (333, 37), (97, 101), (719, 1279), (48, 640))),
)
VIDEOS = tuple(VisualShape("video", Size(9, 160), n, fps) for n in (1, 2, 3, 8, 33, 901) for fps in (1.0, 29.97))


@dataclass(frozen=True, slots=True)
class TokenizerSetup:
    """A tokenizer beside an encoder and a projector that leave it `grid`."""

    tokenizer: Any
    grid: Size

    def make_features(self, plan: VisualPlan) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(len(plan.views), *self.grid, DIM, generator=generator)

    def list_shapes(self) -> Iterator[VisualShape]:
        """Images and videos that it serves."""
        if self.tokenizer.scenarios & {"image", "multi_image"}:
            yield from (VisualShape("image", size) for size in SIZES)
        if "video" in self.tokenizer.scenarios:
            yield from VIDEOS


def build_setups(subject: Subject) -> list[TokenizerSetup]:
    """The tokenizer beside every grid and pooling."""
    return [
        TokenizerSetup(
            subject.build(view_px=VIEW_PX, grid=grid, spatial=spatial, squash=True, pooling=poolings.build(pooling)),
            grid,
        )
        for (grid, spatial), pooling in product(GRIDS, POOLINGS)
    ]


def list_cases(subject: Subject) -> Iterator[tuple[TokenizerSetup, VisualShape]]:
    """Every place where it has no reason against working, with everything that it serves."""
    for place in build_setups(subject):
        if not place.tokenizer.find_faults():
            yield from ((place, shape) for shape in place.list_shapes())


def check_protocol(subject: Subject) -> None:
    """It has marks, scenarios, find_faults, plan, count and assemble."""
    for place in build_setups(subject):
        check_that(isinstance(place.tokenizer, VisionTokenizer), "Something of it is missing.")
        strange = sorted(set(place.tokenizer.scenarios) - set(SCENARIOS))
        check_that(not strange, f"It serves {', '.join(strange)}; scenarios are {', '.join(SCENARIOS)}.")
        check_that(bool(place.tokenizer.scenarios), "It serves no scenario.")


def check_reasons(subject: Subject) -> None:
    """There is a grid that it can work with, and each fault it finds with another is a sentence."""
    all_faults = [place.tokenizer.find_faults() for place in build_setups(subject)]
    check_that(any(not faults for faults in all_faults), f"Everywhere it says: {format_faults(all_faults[0])}")
    for fault in (fault for faults in all_faults for fault in faults):
        is_sentence = isinstance(fault, Fault) and str(fault).endswith((".", "?"))
        check_that(is_sentence, f"{fault!r} is not a Fault whose text is a sentence.")


def check_token_counts(subject: Subject) -> None:
    """count(plan) == plan.num_tokens == rows that assemble gives, for every size of image or video."""
    for place, shape in list_cases(subject):
        plan = place.tokenizer.plan(shape)
        learned_tokens = {learned_token: torch.zeros(DIM) for learned_token in place.tokenizer.learned_tokens}
        rows = place.tokenizer.assemble(place.make_features(plan), plan, learned_tokens)
        counts = (place.tokenizer.count_tokens(plan), plan.num_tokens, len(rows))
        shown = f"A {shape.kind} of {shape.size} pixels, frames {shape.num_frames}:"
        check_that(len(set(counts)) == 1, f"{shown} count {counts[0]}, num_tokens {counts[1]}, rows {counts[2]}.")
        check_that(rows.shape[1] == DIM, f"{shown} the rows are {tuple(rows.shape)}.")


def check_views(subject: Subject) -> None:
    """Every view is as large as the encoder's, out of a frame that exists."""
    for place, shape in list_cases(subject):
        for view in place.tokenizer.plan(shape).views:
            check_that(view.window.size == VIEW_PX, f"{shape}: a view is {view.window.size}, not {VIEW_PX}.")
            check_that(0 <= view.frame < shape.num_frames, f"{shape}: it shows frame {view.frame}.")


def check_inline_texts(subject: Subject) -> None:
    """`told` puts texts before, between and after the rows, in their order."""
    for place, shape in list_cases(subject):
        plan = place.tokenizer.plan(shape)
        before = [rows for rows, _ in plan.inline_texts]
        inside = all(0 <= rows <= plan.num_tokens for rows in before)
        check_that(inside and before == sorted(before), f"{shape}: told after {before} of {plan.num_tokens} rows.")


def check_plan_pickling(subject: Subject) -> None:
    """Plans are made from sizes alone: equal for equal shapes, and they survive pickling."""
    for place, shape in list_cases(subject):
        plan = place.tokenizer.plan(shape)
        check_that(plan == place.tokenizer.plan(shape), f"{shape}: two plans differ.")
        check_that(pickle.loads(pickle.dumps(plan)) == plan, f"{shape}: the pickled plan differs.")


def check_learned_tokens(subject: Subject) -> None:
    """Gradients reach the features and every mark, each at some size of image or video."""
    reached: dict[str, bool] = {}
    for place, shape in list_cases(subject):
        plan = place.tokenizer.plan(shape)
        learned_tokens = {
            learned_token: torch.ones(DIM, requires_grad=True) for learned_token in place.tokenizer.learned_tokens
        }
        x = place.make_features(plan).requires_grad_()
        place.tokenizer.assemble(x, plan, learned_tokens).square().sum().backward()
        check_that(x.grad is not None, f"{shape}: no gradient reaches the features.")
        for mark, row in learned_tokens.items():
            reached[mark] = reached.get(mark, False) or (row.grad is not None and bool(row.grad.any()))
    unused = [mark for mark, seen in reached.items() if not seen]
    check_that(not unused, f"Nothing brings {', '.join(unused)}.")


def check_lowering(subject: Subject) -> None:
    """`lower`, where there is one, says in integers what `assemble` does."""
    for place, shape in list_cases(subject):
        check_lowered_plan(place, shape)


def check_lowered_plan(place: TokenizerSetup, shape: VisualShape) -> None:
    """Gather one visual as its plan lowers, and compare with what is assembled, in float64."""
    plan = place.tokenizer.plan(shape)
    said = lower_tokenizer_plan(place.tokenizer, plan)
    if said is None:
        return
    shown, x = f"A {shape.kind} of {shape.size} pixels, frames {shape.num_frames}:", place.make_features(plan).double()
    learned_tokens = {
        learned_token: torch.full((DIM,), -10.0 - m).double()
        for m, learned_token in enumerate(place.tokenizer.learned_tokens)
    }
    check_that(
        said.rows.dtype == torch.int64 and said.rows.shape == said.weights.shape, f"{shown} rows and weights differ."
    )
    check_that(
        bool(((said.weights.sum(1) - 1).abs() < 1e-6).all()), f"{shown} the weights of a token do not sum to one."
    )
    got, want = _gathered(said, x, list(learned_tokens.values())), _assembled(place, x, plan, learned_tokens)
    check_that(got.shape == want.shape, f"{shown} {len(got)} rows are lowered, {len(want)} assembled.")
    wrong = [row for row, apart in enumerate((got - want).abs().amax(1).tolist()) if apart > EXACT]
    check_that(not wrong, f"{shown} row {wrong[:1]} of {len(want)} is another one assembled.")


def _gathered(said: LoweredPlan, x: Tensor, learned_tokens: list[Tensor]) -> Tensor:
    """Every number of a cell is a row of the table, and -1 - m counts its marks from behind."""
    table = torch.cat([x.flatten(0, 2), *(learned_token[None] for learned_token in reversed(learned_tokens))])
    return (table[said.rows] * said.weights.to(x)[..., None]).sum(1)


def _assembled(place: TokenizerSetup, x: Tensor, plan: VisualPlan, learned_tokens: dict[str, Tensor]) -> Tensor:
    return place.tokenizer.assemble(apply_before_projector(place.tokenizer, x), plan, learned_tokens)


CHECKS = (
    check_protocol,
    check_reasons,
    check_token_counts,
    check_views,
    check_inline_texts,
    check_plan_pickling,
    check_learned_tokens,
    check_lowering,
)
