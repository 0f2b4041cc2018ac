"""Samples end to end in one packed batch: nothing padded, nothing cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mmblocks.batch import Batch, GatherLayout, Instructions, Packing, RowIndex
from mmblocks.data.sample.gather_layout import join_layouts, map_batch_views, prepare_backward, shifted
from mmblocks.data.sample.processor import Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Pack samples in their order. Positions restart at 0 in each."""
    encoded = [sample.encoded for sample in samples]
    lengths = [len(e) for e in encoded]
    starts = [0, *accumulate(lengths)][:-1]
    packing, targets = Packing.from_lengths(lengths), torch.cat([e.targets for e in encoded])
    labelled = RowIndex.from_targets(targets, packing)
    plans = tuple(plan for e in encoded for plan in e.plans)
    return Batch(
        input_ids=torch.cat([e.input_ids for e in encoded]),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        targets=targets,
        packing=packing,
        pixels=torch.cat([sample.pixels for sample in samples]),
        plans=plans,
        visual_positions=torch.cat([e.visual_positions + s for e, s in zip(encoded, starts, strict=True)]),
        instructions=_instructions(samples),
        features=_features(samples),
        views=map_batch_views(plans),
        layout=_make_batch_layout(samples, starts, is_learned=any(labelled.counts)),
        precomputed_target_rows=labelled,
    )


def _make_batch_layout(samples: Sequence[Sample], starts: Sequence[int], is_learned: bool) -> GatherLayout | None:
    """None where nothing is shown, or where one sample with visuals has none."""
    shown = [(sample.layout, start) for sample, start in zip(samples, starts, strict=True) if sample.encoded.plans]
    layouts = [shifted(layout, start) for layout, start in shown if layout is not None]
    if not layouts or len(layouts) < len(shown):
        return None
    return prepare_backward(join_layouts(layouts)) if is_learned else join_layouts(layouts)


def _features(samples: Sequence[Sample]) -> Tensor | None:
    kept = [sample.features for sample in samples if sample.features is not None]
    return torch.cat(kept) if len(kept) == len(samples) else None


def _instructions(samples: Sequence[Sample]) -> Instructions | None:
    asked = [sample.instructions for sample in samples if sample.instructions is not None]
    return Instructions.from_ids([row for rows in asked for row in rows]) if len(asked) == len(samples) else None
