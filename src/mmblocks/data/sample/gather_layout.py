"""The plans of a sample, and of a batch, in integers: see `mmblocks.batch.GatherLayout`. Made in the data worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.batch import GatherLayout, GatherTable
from mmblocks.components import PerTokenProjector, has_capability
from mmblocks.ops.gather_lerp import with_transpose
from mmblocks.shapes import RoutedPlan, Size, VisualPlan
from mmblocks.tokenizers.lowering import LoweredPlan, lower_tokenizer_plan, pad_to_k
from mmblocks.tokenizers.router import Router

if TYPE_CHECKING:
    from mmblocks.data.sample.processor import ModelParts


@dataclass(frozen=True, slots=True)
class GatherLayoutBuilder:
    """Makes the layouts of a model's samples.

    grid: cells of a view after the projector. per_token: whether the projector's body maps every cell by itself, so that
    cells which no token reads need not enter it. learned_tokens: names of the model's learned rows.
    """

    grid: Size
    per_token: bool
    learned_tokens: tuple[str, ...]

    @classmethod
    def from_model(cls, model: ModelParts) -> GatherLayoutBuilder:
        """That of a `OneVision`, or of anything with its encoder, projector and router."""
        grid = model.projector.out_grid(model.encoder.grid)
        return cls(grid, has_capability(model.projector, PerTokenProjector), model.router.learned_tokens)

    def make_sample_layout(self, plans: Sequence[RoutedPlan], positions: Tensor, router: Router) -> GatherLayout | None:
        """The layout of the visuals that `router` planned, the sample's first row at 0.

        positions: (visual tokens,) int64, the rows of the visual tokens. None where nothing is shown or something does not
        lower: poolings that are not linear, and others' tokenizers without `lower_plan`.
        """
        rows = positions.split([routed.plan.num_tokens for routed in plans])
        layouts = []
        for routed, visual_rows in zip(plans, rows, strict=True):
            tokenizer = router.select_tokenizer(routed.scenario)
            lowered = lower_tokenizer_plan(tokenizer, routed.plan)
            if lowered is None or (lowered.before_projector and not self.per_token):
                return None
            numbers = [self.learned_tokens.index(name) for name in tokenizer.learned_tokens]
            learned = torch.tensor(numbers, dtype=torch.int64)
            layouts.append(self._make_visual_layout(lowered, routed.plan, learned, visual_rows))
        return join_layouts(layouts) if layouts else None

    def _make_visual_layout(
        self, lowered: LoweredPlan, plan: VisualPlan, learned_numbers: Tensor, positions: Tensor
    ) -> GatherLayout:
        """learned_numbers: which of the model's learned tokens each of the tokenizer's own is."""
        is_learned = lowered.rows[:, 0] < 0
        visual, learned = (~is_learned).nonzero().squeeze(1), is_learned.nonzero().squeeze(1)
        rows, num_images = lowered.rows.index_select(0, visual), len(plan.unique_views)
        if num_images < len(plan.views):
            rows = map_plan_views(plan)[rows // self.grid.area] * self.grid.area + rows % self.grid.area
        weights = lowered.weights.index_select(0, visual).to(torch.float32)
        cells, tokens = None, GatherTable(rows, weights, num_images * self.grid.area)
        if self.per_token and lowered.before_projector:
            cells, tokens = tokens, _make_identity_table(len(rows))
        elif self.per_token:
            used = torch.zeros(tokens.size, dtype=torch.bool)
            used[rows.flatten()] = True
            if not used.all():
                read = used.nonzero()
                cells = GatherTable(read, torch.ones(read.shape), tokens.size)
                tokens = GatherTable((used.cumsum(0) - 1)[rows], weights, len(read))
        learned_ids = learned_numbers[-1 - lowered.rows[learned, 0]]
        return GatherLayout(cells, tokens, positions[visual], learned_ids, positions[learned])


def map_plan_views(plan: VisualPlan) -> Tensor:
    """(views,) int64: the number of each view among the plan's images."""
    numbers = {view: n for n, view in enumerate(plan.unique_views)}
    return torch.tensor([numbers[view] for view in plan.views], dtype=torch.int64)


def map_batch_views(plans: Sequence[RoutedPlan]) -> Tensor | None:
    """(views of all plans,) int64, which of their images each is; None where every view is an image of its own."""
    counts = [len(routed.plan.unique_views) for routed in plans]
    if sum(counts) == sum(len(routed.plan.views) for routed in plans):
        return None
    starts = accumulate(counts, initial=0)
    return torch.cat([map_plan_views(routed.plan) + start for routed, start in zip(plans, starts, strict=False)])


def join_layouts(layouts: Sequence[GatherLayout]) -> GatherLayout:
    """One layout for visuals that follow each other; there is at least one. Positions stay as they are."""
    if len(layouts) == 1:
        return layouts[0]
    every_cell = all(layout.cell_table is None for layout in layouts)
    return GatherLayout(
        None
        if every_cell
        else _concatenate_tables([one.cell_table or _make_identity_table(one.token_table.size) for one in layouts]),
        _concatenate_tables([one.token_table for one in layouts]),
        *(
            torch.cat([getattr(one, name) for one in layouts])
            for name in ("positions", "learned_token_ids", "learned_token_positions")
        ),
    )


def shift_layout(layout: GatherLayout, rows: int) -> GatherLayout:
    """The same for a sample that begins `rows` rows later."""
    return replace(
        layout, positions=layout.positions + rows, learned_token_positions=layout.learned_token_positions + rows
    )


def prepare_backward(layout: GatherLayout) -> GatherLayout:
    """The same with the transposes of its tables, which a data worker makes while the device is busy."""
    return replace(
        layout,
        cell_table=None if layout.cell_table is None else with_transpose(layout.cell_table),
        token_table=with_transpose(layout.token_table),
    )


def _concatenate_tables(parts: Sequence[GatherTable]) -> GatherTable:
    """One table for groups of cells that lie one after the other, with as many columns as any of them needs."""
    k = max(part.rows.shape[1] for part in parts)
    starts = accumulate((part.size for part in parts), initial=0)
    rows, weights = zip(*(pad_to_k(part.rows, part.weights, k) for part in parts), strict=True)
    placed = [own + start for own, start in zip(rows, starts, strict=False)]
    return GatherTable(torch.cat(placed), torch.cat(weights), sum(part.size for part in parts))


def _make_identity_table(size: int) -> GatherTable:
    """A table that changes nothing."""
    return GatherTable(torch.arange(size)[:, None], torch.ones(size, 1), size)
