"""Visual tokens by way of the tokenizers themselves: the reference implementation of the one gather, and the way of what cannot be lowered.

Poolings that are not linear, and tokenizers of third parties without `lower`, are assembled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.components import apply_before_projector

if TYPE_CHECKING:
    from mmblocks.model.onevision import OneVision


def assemble_visual_tokens(model: OneVision, batch: Batch) -> Tensor:
    """(visual tokens, dim): the tokens of all visuals of the batch, in order."""
    learned_tokens = dict(model.learned_tokens.items())
    rows = [
        model.router.select_tokenizer(routed.scenario).assemble(views, routed.plan, learned_tokens)
        for views, routed in zip(project_visuals(model, batch), batch.plans, strict=True)
    ]
    return torch.cat(rows)


def project_visuals(model: OneVision, batch: Batch) -> Sequence[Tensor]:
    """(views, rows, columns, dim) for each visual: its features in the backbone's width."""
    features, asked = model.encode_batch(batch), model.projector_instructions(batch)
    if batch.views is not None:
        features, asked = features[batch.views], tuple(one.select_views(batch.views) for one in asked)
    counts = [len(routed.plan.views) for routed in batch.plans]
    encoded = features.split(counts)
    early = [
        apply_before_projector(model.router.select_tokenizer(routed.scenario), views)
        for views, routed in zip(encoded, batch.plans, strict=True)
    ]
    if all(after is before for after, before in zip(early, encoded, strict=True)):
        return model.projector(features, *asked).split(counts)
    parts = [one.split_by_counts(counts) for one in asked]
    return [model.projector(*part) for part in zip(early, *parts, strict=True)]
