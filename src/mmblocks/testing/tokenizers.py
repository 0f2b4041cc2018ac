"""Conformance checks of visual tokenizers."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import LowerableTokenizer, VisionTokenizer, apply_before_projector, poolings
from mmblocks.faults import Fault, format_faults
from mmblocks.shapes import SCENARIOS, Size, VisualPlan, VisualShape
from mmblocks.testing.conformance import Subject, check_that
from mmblocks.tokenizers.lowering import lower_tokenizer_plan

VIEW_PX = Size(28, 28)
GRIDS = ((Size(4, 4), True), (Size(3, 3), True), (Size(1, 5), False))
"""Grids behind encoder and projector, and whether they have the image's rows and columns."""
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
    """A tokenizer built for views of `grid` cells."""

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
    """The tokenizer built for every grid and pooling."""
    return [
        TokenizerSetup(
            subject.build(view_px=VIEW_PX, grid=grid, spatial=spatial, squash=True, pooling=poolings.build(pooling)),
            grid,
        )
        for (grid, spatial), pooling in product(GRIDS, POOLINGS)
    ]


def list_cases(subject: Subject) -> Iterator[tuple[TokenizerSetup, VisualShape]]:
    """Every setup that it accepts, with every image or video that it serves."""
    for setup in build_setups(subject):
        if not setup.tokenizer.find_faults():
            yield from ((setup, shape) for shape in setup.list_shapes())


def check_protocol(subject: Subject) -> None:
    """It has learned_tokens, scenarios, find_faults, plan, count_tokens and assemble."""
    for setup in build_setups(subject):
        check_that(isinstance(setup.tokenizer, VisionTokenizer), "Some of these are missing.")
        unknown = sorted(set(setup.tokenizer.scenarios) - set(SCENARIOS))
        check_that(not unknown, f"It serves {', '.join(unknown)}; scenarios are {', '.join(SCENARIOS)}.")
        check_that(bool(setup.tokenizer.scenarios), "It serves no scenario.")


def check_faults(subject: Subject) -> None:
    """It accepts some grid, and each fault that it finds with another is a sentence."""
    all_faults = [setup.tokenizer.find_faults() for setup in build_setups(subject)]
    check_that(any(not faults for faults in all_faults), f"For every grid it says: {format_faults(all_faults[0])}")
    for fault in (fault for faults in all_faults for fault in faults):
        is_sentence = isinstance(fault, Fault) and str(fault).endswith((".", "?"))
        check_that(is_sentence, f"{fault!r} is not a Fault whose text is a sentence.")


def check_token_counts(subject: Subject) -> None:
    """count_tokens(plan) == plan.num_tokens == rows that assemble gives, for every size of image or video."""
    for setup, shape in list_cases(subject):
        plan = setup.tokenizer.plan(shape)
        learned_tokens = {name: torch.zeros(DIM) for name in setup.tokenizer.learned_tokens}
        rows = setup.tokenizer.assemble(setup.make_features(plan), plan, learned_tokens)
        counts = (setup.tokenizer.count_tokens(plan), plan.num_tokens, len(rows))
        context = _format_shape(shape)
        check_that(
            len(set(counts)) == 1, f"{context} count_tokens {counts[0]}, num_tokens {counts[1]}, rows {counts[2]}."
        )
        check_that(rows.shape[1] == DIM, f"{context} the rows are {tuple(rows.shape)}.")


def check_views(subject: Subject) -> None:
    """Every view has the encoder's size, and is cut from a frame that exists."""
    for setup, shape in list_cases(subject):
        for view in setup.tokenizer.plan(shape).views:
            check_that(view.window.size == VIEW_PX, f"{shape}: a view is {view.window.size}, not {VIEW_PX}.")
            check_that(0 <= view.frame < shape.num_frames, f"{shape}: it is of frame {view.frame}.")


def check_inline_texts(subject: Subject) -> None:
    """`inline_texts` stand before, between and after the tokens, in their order."""
    for setup, shape in list_cases(subject):
        plan = setup.tokenizer.plan(shape)
        before = [rows for rows, _ in plan.inline_texts]
        inside = all(0 <= rows <= plan.num_tokens for rows in before)
        check_that(inside and before == sorted(before), f"{shape}: texts after {before} of {plan.num_tokens} rows.")


def check_plan_pickling(subject: Subject) -> None:
    """Plans are made from sizes alone: equal for equal shapes, and they survive pickling."""
    for setup, shape in list_cases(subject):
        plan = setup.tokenizer.plan(shape)
        check_that(plan == setup.tokenizer.plan(shape), f"{shape}: two plans differ.")
        check_that(pickle.loads(pickle.dumps(plan)) == plan, f"{shape}: the pickled plan differs.")


def check_learned_tokens(subject: Subject) -> None:
    """Gradients reach the features and every learned token, each at some size of image or video."""
    reached: dict[str, bool] = {}
    for setup, shape in list_cases(subject):
        plan = setup.tokenizer.plan(shape)
        learned_tokens = {name: torch.ones(DIM, requires_grad=True) for name in setup.tokenizer.learned_tokens}
        x = setup.make_features(plan).requires_grad_()
        setup.tokenizer.assemble(x, plan, learned_tokens).square().sum().backward()
        check_that(x.grad is not None, f"{shape}: no gradient reaches the features.")
        for name, row in learned_tokens.items():
            reached[name] = reached.get(name, False) or (row.grad is not None and bool(row.grad.any()))
    unused = [name for name, has_gradient in reached.items() if not has_gradient]
    check_that(not unused, f"None reaches {', '.join(unused)}.")


def check_lowering(subject: Subject) -> None:
    """`lower_plan`, if it has one, gives in integers what `assemble` computes, and `lowerable_assemble` is this `assemble`."""
    for setup in build_setups(subject):
        is_declared = not hasattr(setup.tokenizer, "lower_plan") or isinstance(setup.tokenizer, LowerableTokenizer)
        check_that(is_declared, "It has no lowerable_assemble; write `lowerable_assemble = assemble` below assemble.")
    for setup, shape in list_cases(subject):
        check_lowered_plan(setup, shape)


def check_lowered_plan(setup: TokenizerSetup, shape: VisualShape) -> None:
    """Gather the tokens of one image or video as its plan lowers, and compare with `assemble`, in float64."""
    tokenizer, plan, context = setup.tokenizer, setup.tokenizer.plan(shape), _format_shape(shape)
    lowered = lower_tokenizer_plan(tokenizer, plan)
    if lowered is None:
        return
    rows, weights = lowered.rows, lowered.weights
    check_that(rows.dtype == torch.int64 and rows.shape == weights.shape, f"{context} rows and weights differ.")
    sums_to_one = bool(((weights.sum(1) - 1).abs() < 1e-6).all())
    check_that(sums_to_one, f"{context} the weights of a token do not sum to one.")
    features = setup.make_features(plan).double()
    learned_tokens = {name: torch.full((DIM,), -10.0 - m).double() for m, name in enumerate(tokenizer.learned_tokens)}
    # A cell's number is its row in the table; -1 - m counts learned tokens from the end.
    table = torch.cat([features.flatten(0, 2), *(row[None] for row in reversed(learned_tokens.values()))])
    got = (table[rows] * weights.to(table)[..., None]).sum(1)
    want = tokenizer.assemble(apply_before_projector(tokenizer, features), plan, learned_tokens)
    check_that(got.shape == want.shape, f"{context} {len(got)} rows are lowered, {len(want)} assembled.")
    wrong = [row for row, apart in enumerate((got - want).abs().amax(1).tolist()) if apart > EXACT]
    check_that(not wrong, f"{context} row {wrong[:1]} of {len(want)} differs from the assembled one.")


def _format_shape(shape: VisualShape) -> str:
    article = "An" if shape.kind == "image" else "A"
    return f"{article} {shape.kind} of {shape.size} pixels, frames {shape.num_frames}:"


CHECKS = (
    check_protocol,
    check_faults,
    check_token_counts,
    check_views,
    check_inline_texts,
    check_plan_pickling,
    check_learned_tokens,
    check_lowering,
)
