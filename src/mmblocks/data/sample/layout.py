"""The plans of a sample, and of a batch, in integers: see `mmblocks.batch.Layout`. Made in the data worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import GatherLayout, GatherTable
from mmblocks.components import PerTokenProjector, VisionTokenizer, has_capability
from mmblocks.ops.gather_lerp import with_transpose
from mmblocks.shapes import RoutedPlan, Size, VisualPlan
from mmblocks.tokenizers.lowering import LoweredPlan, lower_tokenizer_plan, pad_to_k
from mmblocks.tokenizers.router import Router


@dataclass(frozen=True, slots=True)
class GatherLayoutBuilder:
    """Makes the layouts of a model's samples.

    grid: cells of a view after the projector. per_token: whether the projector's body works on every cell by itself, so
    that cells which no token reads need not enter it. marks: names of the model's learned rows.
    """

    grid: Size
    per_token: bool
    learned_tokens: tuple[str, ...]

    @classmethod
    def from_model(cls, model: Any) -> GatherLayoutBuilder:
        """Those of a `OneVision`, or of anything with its encoder, projector and router."""
        grid = model.projector.out_grid(model.encoder.grid)
        return cls(grid, has_capability(model.projector, PerTokenProjector), model.router.learned_tokens)

    def make_sample_layout(self, plans: Sequence[RoutedPlan], positions: Tensor, router: Router) -> GatherLayout | None:
        """The layout of the visuals that `router` planned, the sample's first row at 0.

        positions: (visual tokens,) int64, the places of their rows. None where nothing is shown or something does not
        lower: poolings that are not linear, and others' tokenizers without `lower`.
        """
        rows = positions.split([routed.plan.num_tokens for routed in plans])
        each = [
            self._make_visual_layout(router.select_tokenizer(routed.scenario), routed.plan, own)
            for routed, own in zip(plans, rows, strict=True)
        ]
        known = [layout for layout in each if layout is not None]
        return join_layouts(known) if known and len(known) == len(each) else None

    def _make_visual_layout(
        self, tokenizer: VisionTokenizer[Any], plan: VisualPlan, positions: Tensor
    ) -> GatherLayout | None:
        made = lower_tokenizer_plan(tokenizer, plan)
        if made is None or (made.before_projector and not self.per_token):
            return None
        is_mark = made.rows[:, 0] < 0
        shown, learned = (~is_mark).nonzero().squeeze(1), is_mark.nonzero().squeeze(1)
        cells, taps = self._split_at_body(self._taps(made, shown, plan), made.before_projector)
        numbers = torch.tensor(
            [self.learned_tokens.index(learned_token) for learned_token in tokenizer.learned_tokens], dtype=torch.int64
        )
        return GatherLayout(cells, taps, positions[shown], numbers[-1 - made.rows[learned, 0]], positions[learned])

    def _taps(self, made: LoweredPlan, shown: Tensor, plan: VisualPlan) -> GatherTable:
        """The rows that are no marks, out of the cells of the plan's images."""
        rows, images = made.rows.index_select(0, shown), len(plan.unique_views)
        if images < len(plan.views):
            rows = map_plan_views(plan)[rows // self.grid.area] * self.grid.area + rows % self.grid.area
        weights = made.weights.index_select(0, shown).to(torch.float32)
        return GatherTable(rows, weights, images * self.grid.area)

    def _split_at_body(self, taps: GatherTable, early: bool) -> tuple[GatherTable | None, GatherTable]:
        """`Layout.cells` and `Layout.taps` of rows made of all cells."""
        if not self.per_token:
            return None, taps
        if early:
            return taps, _make_identity_table(len(taps.rows))
        used = torch.zeros(taps.size, dtype=torch.bool)
        used[taps.rows.flatten()] = True
        if used.all():
            return None, taps
        cells = used.nonzero()
        rows = (used.cumsum(0) - 1)[taps.rows]
        return GatherTable(cells, torch.ones(cells.shape), taps.size), GatherTable(rows, taps.weights, len(cells))


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
    """One layout for visuals that follow each other; there is at least one. Places in the sequence stay as they are."""
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


def shifted(layout: GatherLayout, rows: int) -> GatherLayout:
    """The same for a sample that begins `rows` rows later."""
    return replace(
        layout, positions=layout.positions + rows, learned_token_positions=layout.learned_token_positions + rows
    )


def prepare_backward(layout: GatherLayout) -> GatherLayout:
    """The same with its taps turned round, too, which a data worker does while the device is busy."""
    return replace(
        layout,
        cell_table=None if layout.cell_table is None else with_transpose(layout.cell_table),
        token_table=with_transpose(layout.token_table),
    )


def _concatenate_tables(parts: Sequence[GatherTable]) -> GatherTable:
    """Taps of things that lie one after the other, all with room for as many cells as any needs."""
    k = max(part.rows.shape[1] for part in parts)
    starts = accumulate((part.size for part in parts), initial=0)
    rows, weights = zip(*(pad_to_k(part.rows, part.weights, k) for part in parts), strict=True)
    placed = [own + start for own, start in zip(rows, starts, strict=False)]
    return GatherTable(torch.cat(placed), torch.cat(weights), sum(part.size for part in parts))


def _make_identity_table(size: int) -> GatherTable:
    """Taps that change nothing."""
    return GatherTable(torch.arange(size)[:, None], torch.ones(size, 1), size)
