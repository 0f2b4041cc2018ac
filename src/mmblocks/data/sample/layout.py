"""The plans of a sample, and of a batch, in integers: see `mmblocks.batch.Layout`. Made in the data worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import Layout, Taps
from mmblocks.ops.gather_lerp import turned
from mmblocks.shapes import RoutedPlan, Size, VisualPlan
from mmblocks.tokenizers.lowering import Lowered, lowered, widened
from mmblocks.tokenizers.router import Router


@dataclass(frozen=True, slots=True)
class Layouts:
    """Makes the layouts of a model's samples.

    grid: cells of a view after the projector. per_token: whether the projector's body works on every cell by itself, so
    that cells which no token reads need not enter it. marks: names of the model's learned rows.
    """

    grid: Size
    per_token: bool
    marks: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> Layouts:
        """Those of a `OneVision`, or of anything with its encoder, projector and router."""
        grid = model.projector.out_grid(model.encoder.grid)
        return cls(grid, getattr(model.projector, "per_token", False), model.router.marks)

    def of_sample(self, plans: Sequence[RoutedPlan], positions: Tensor, router: Router) -> Layout | None:
        """The layout of the visuals that `router` planned, the sample's first row at 0.

        positions: (visual tokens,) int64, the places of their rows. None where nothing is shown or something does not
        lower: poolings that are not linear, and others' tokenizers without `lower`.
        """
        rows = positions.split([routed.plan.num_tokens for routed in plans])
        each = [
            self._of_visual(router.for_scenario(routed.scenario), routed.plan, own)
            for routed, own in zip(plans, rows, strict=True)
        ]
        known = [layout for layout in each if layout is not None]
        return joined(known) if known and len(known) == len(each) else None

    def _of_visual(self, tokenizer: Any, plan: VisualPlan, positions: Tensor) -> Layout | None:
        made = lowered(tokenizer, plan)
        if made is None or (made.early and not self.per_token):
            return None
        is_mark = made.rows[:, 0] < 0
        shown, learned = (~is_mark).nonzero().squeeze(1), is_mark.nonzero().squeeze(1)
        cells, taps = self._through_body(self._taps(made, shown, plan), made.early)
        numbers = torch.tensor([self.marks.index(mark) for mark in tokenizer.marks], dtype=torch.int64)
        return Layout(cells, taps, positions[shown], numbers[-1 - made.rows[learned, 0]], positions[learned])

    def _taps(self, made: Lowered, shown: Tensor, plan: VisualPlan) -> Taps:
        """The rows that are no marks, out of the cells of the plan's pictures."""
        rows, pictures = made.rows.index_select(0, shown), len(plan.pictures)
        if pictures < len(plan.views):
            rows = picture_of_views(plan)[rows // self.grid.area] * self.grid.area + rows % self.grid.area
        weights = made.weights.index_select(0, shown).to(torch.float32)
        return Taps(rows, weights, pictures * self.grid.area)

    def _through_body(self, taps: Taps, early: bool) -> tuple[Taps | None, Taps]:
        """`Layout.cells` and `Layout.taps` of rows made of all cells."""
        if not self.per_token:
            return None, taps
        if early:
            return taps, _each_itself(len(taps.rows))
        used = torch.zeros(taps.size, dtype=torch.bool)
        used[taps.rows.flatten()] = True
        if used.all():
            return None, taps
        cells = used.nonzero()
        rows = (used.cumsum(0) - 1)[taps.rows]
        return Taps(cells, torch.ones(cells.shape), taps.size), Taps(rows, taps.weights, len(cells))


def picture_of_views(plan: VisualPlan) -> Tensor:
    """(views,) int64: the number of each view among the plan's pictures."""
    numbers = {view: n for n, view in enumerate(plan.pictures)}
    return torch.tensor([numbers[view] for view in plan.views], dtype=torch.int64)


def views_of(plans: Sequence[RoutedPlan]) -> Tensor | None:
    """(views of all plans,) int64, which of their pictures each is; None where every view is a picture of its own."""
    counts = [len(routed.plan.pictures) for routed in plans]
    if sum(counts) == sum(len(routed.plan.views) for routed in plans):
        return None
    starts = accumulate(counts, initial=0)
    return torch.cat([picture_of_views(routed.plan) + start for routed, start in zip(plans, starts, strict=False)])


def joined(layouts: Sequence[Layout]) -> Layout:
    """One layout for visuals that follow each other; there is at least one. Places in the sequence stay as they are."""
    if len(layouts) == 1:
        return layouts[0]
    every_cell = all(layout.cells is None for layout in layouts)
    return Layout(
        None if every_cell else _cat([one.cells or _each_itself(one.taps.size) for one in layouts]),
        _cat([one.taps for one in layouts]),
        *(torch.cat([getattr(one, name) for one in layouts]) for name in ("positions", "marks", "mark_positions")),
    )


def moved(layout: Layout, rows: int) -> Layout:
    """The same for a sample that begins `rows` rows later."""
    return replace(layout, positions=layout.positions + rows, mark_positions=layout.mark_positions + rows)


def ready_for_backward(layout: Layout) -> Layout:
    """The same with its taps turned round, too, which a data worker does while the device is busy."""
    return replace(layout, cells=None if layout.cells is None else turned(layout.cells), taps=turned(layout.taps))


def _cat(parts: Sequence[Taps]) -> Taps:
    """Taps of things that lie one after the other, all with room for as many cells as any needs."""
    k = max(part.rows.shape[1] for part in parts)
    starts = accumulate((part.size for part in parts), initial=0)
    rows, weights = zip(*(widened(part.rows, part.weights, k) for part in parts), strict=True)
    placed = [own + start for own, start in zip(rows, starts, strict=False)]
    return Taps(torch.cat(placed), torch.cat(weights), sum(part.size for part in parts))


def _each_itself(size: int) -> Taps:
    """Taps that change nothing."""
    return Taps(torch.arange(size)[:, None], torch.ones(size, 1), size)
