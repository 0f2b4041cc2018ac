"""Samples end to end in one packed batch: nothing padded, nothing cut."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from mmblocks.batch import Batch, Instructions, Packing, RowIndex
from mmblocks.data.sample.gather_layout import join_layouts, map_batch_views, prepare_backward, shift_layout
from mmblocks.data.sample.processor import Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Pack samples in their order. Positions restart at 0 in each."""
    encoded = [sample.encoded for sample in samples]
    lengths = [len(e) for e in encoded]
    starts = [0, *accumulate(lengths)][:-1]
    packing, targets = Packing.from_lengths(lengths), torch.cat([e.targets for e in encoded])
    labelled = RowIndex.from_targets(targets, packing)
    plans = tuple(plan for e in encoded for plan in e.plans)
    with_visuals = [
        (sample.layout, start) for sample, start in zip(samples, starts, strict=True) if sample.encoded.plans
    ]
    layouts = [shift_layout(layout, start) for layout, start in with_visuals if layout is not None]
    layout = join_layouts(layouts) if layouts and len(layouts) == len(with_visuals) else None
    features = [sample.features for sample in samples if sample.features is not None]
    questions = [sample.instructions for sample in samples if sample.instructions is not None]
    return Batch(
        input_ids=torch.cat([e.input_ids for e in encoded]),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        targets=targets,
        packing=packing,
        pixels=torch.cat([sample.pixels for sample in samples]),
        plans=plans,
        visual_positions=torch.cat([e.visual_positions + s for e, s in zip(encoded, starts, strict=True)]),
        instructions=Instructions.from_ids([ids for rows in questions for ids in rows])
        if len(questions) == len(samples)
        else None,
        features=torch.cat(features) if len(features) == len(samples) else None,
        views=map_batch_views(plans),
        layout=prepare_backward(layout) if layout is not None and any(labelled.counts) else layout,
        precomputed_target_rows=labelled,
    )
