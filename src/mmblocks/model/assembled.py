"""Visual tokens made by the tokenizers' own `assemble`: the reference implementation of the one gather.

It also serves what cannot be lowered: poolings that are not linear, and tokenizers that are no `LowerableTokenizer`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmblocks.batch import Batch, Instructions
from mmblocks.components import Projector, apply_before_projector
from mmblocks.tokenizers.router import Router


def assemble_visual_tokens(
    batch: Batch,
    features: Tensor,
    instructions: Sequence[Instructions],
    projector: Projector,
    router: Router,
    learned_tokens: Mapping[str, Tensor],
) -> Tensor:
    """(visual tokens, dim): the tokens of all images and videos of the batch, in order.

    features: (unique views, rows, columns, encoder dim) of `batch.pixels`. instructions: what the projector takes beside them.
    """
    if batch.views is not None:  # equal views were encoded once
        features, instructions = features[batch.views], [one.select_views(batch.views) for one in instructions]
    counts = [len(routed.plan.views) for routed in batch.plans]
    tokenizers = [router.select_tokenizer(routed.scenario) for routed in batch.plans]
    encoded = features.split(counts)
    pooled = [apply_before_projector(tokenizer, views) for tokenizer, views in zip(tokenizers, encoded, strict=True)]
    if all(after is before for after, before in zip(pooled, encoded, strict=True)):
        projected = projector(features, *instructions).split(counts)
    else:
        split_instructions = (one.split_by_counts(counts) for one in instructions)
        projected = [projector(*inputs) for inputs in zip(pooled, *split_instructions, strict=True)]
    return torch.cat(
        [
            tokenizer.assemble(views, routed.plan, learned_tokens)
            for tokenizer, views, routed in zip(tokenizers, projected, batch.plans, strict=True)
        ]
    )
