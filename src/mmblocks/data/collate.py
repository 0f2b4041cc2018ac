"""Samples end to end in one packed batch: nothing padded, nothing cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mmblocks.batch import Batch, Instructions, Packing
from mmblocks.data.processor import Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Pack samples in their order. Positions restart at 0 in each."""
    encoded = [sample.encoded for sample in samples]
    lengths = [len(e) for e in encoded]
    starts = [0, *accumulate(lengths)][:-1]
    return Batch(
        input_ids=torch.cat([e.input_ids for e in encoded]),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        targets=torch.cat([e.targets for e in encoded]),
        packing=Packing.of(lengths),
        pixels=torch.cat([sample.pixels for sample in samples]),
        plans=tuple(plan for e in encoded for plan in e.plans),
        visual_positions=torch.cat([e.visual_positions + s for e, s in zip(encoded, starts, strict=True)]),
        instructions=_instructions(samples),
        features=_features(samples),
    )


def _features(samples: Sequence[Sample]) -> Tensor | None:
    kept = [sample.features for sample in samples if sample.features is not None]
    return torch.cat(kept) if len(kept) == len(samples) else None


def _instructions(samples: Sequence[Sample]) -> Instructions | None:
    asked = [sample.instructions for sample in samples if sample.instructions is not None]
    return Instructions.of([row for rows in asked for row in rows]) if len(asked) == len(samples) else None
