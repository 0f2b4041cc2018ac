"""A stage without weights and data, on the meta device: its model, a full packed row, what a forward pass keeps of it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil, log

import torch

from mmblocks.batch import Batch, Instructions, Packing, RowIndex
from mmblocks.components import InstructedProjector, has_capability
from mmblocks.data.sample.gather_layout import GatherLayoutBuilder, map_batch_views, prepare_backward
from mmblocks.model.budget import parse_visual_shape
from mmblocks.model.build import build_from_spec, build_router, set_dtype
from mmblocks.model.costs.activations import ActivationMemory, count_activations
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.model.trainable import train_only
from mmblocks.shapes import VisualShape
from mmblocks.train.distributed import list_blocks
from mmblocks.train.stages import Stage

LABELLED_SHARE = 0.1
"""Share of a row's tokens that are taken to be labelled; LLaVA-OneVision's mixtures have some 5 %."""
TEXT_TOKENS = 64
"""Text beside the visuals of a reference sample."""
REFERENCE_SAMPLES = (
    ("image=384x384",),
    ("image=1000x700",),
    ("image=2304x2304",),
    ("image=1000x700",) * 8,
    ("video=1280x720@60s",),
)
"""Conversations that a row is filled with, by the visuals they show."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One packed row: what a process computes at a time. `labels` tokens are learned."""

    samples: tuple[tuple[VisualShape, ...], ...]
    text_tokens: tuple[int, ...]
    labels: int


def make_meta_stage_model(model: Mapping[str, object] | ModelSpec, stage: Stage) -> OneVision:
    """The stage's model on the meta device, in the type it computes in, with what it trains and with its tokenizers.

    Its language model has fused layers, as on a GPU; `mmblocks.backbones.fused_layers.use_own_layers` runs it as on a CPU.
    """
    from mmblocks.backbones.fused_layers import fuse_layers  # operators that a training run on a CPU does not need

    spec = model if isinstance(model, ModelSpec) else ModelSpec.from_dict(model)
    with torch.device("meta"):
        built = build_from_spec(spec, backbone_on_meta=True)
        shown = ModelSpec.from_dict({"tokenizer": {**spec.tokenizer, **stage.tokenizer}, "pooling": spec.pooling})
        fuse_layers(built.backbone)
        built.router = build_router(shown, built.encoder, built.projector)
    return set_dtype(freeze_for_stage(built, stage), getattr(torch, stage.with_precision("float32").precision)).train()


def freeze_for_stage(model: OneVision, stage: Stage) -> OneVision:
    """A model on the meta device as the stage trains it: the same one, or a copy with adapters. Adapters stand around whole
    weights: codes of fewer bits cannot be made without the weights, and are counted instead.
    """
    if stage.lora is not None:
        from mmblocks.train.adapters.lora import add_lora

        model = copy.deepcopy(model)  # other stages have no adapters
        with torch.device("meta"):
            add_lora(model, replace(stage.lora, bits=None))
    train_only(model, stage.trained_parts)
    return model


def make_packed_row(model: OneVision, stage: Stage, ranks: int) -> PackedRow:
    """A row that is as full as the stage's caps allow, or a process' samples of a step where there are no caps.

    Reference samples fill it so that tokens and views run out together; text takes the tokens that are left over.
    """
    shapes = [tuple(map(parse_visual_shape, words)) for words in REFERENCE_SAMPLES]
    if stage.pack_tokens is None:
        samples = [shapes[1]] * ceil((stage.global_batch_size or 1) / ranks)
        return PackedRow(tuple(samples), (TEXT_TOKENS,) * len(samples), TEXT_TOKENS * len(samples))
    sizes = {}
    for sample in shapes:
        plans = [routed.plan for routed in model.router.plan(sample)]
        sizes[sample] = sum(p.num_tokens for p in plans) + TEXT_TOKENS, sum(len(p.unique_views) for p in plans)
    samples, tokens = [], stage.pack_tokens
    views = tokens if stage.pack_views is None else stage.pack_views
    while fitting := {s: size for s, size in sizes.items() if size[0] <= tokens and size[1] <= views}:
        best = min(fitting, key=lambda s: abs(log(fitting[s][1] / fitting[s][0]) - log(views / tokens)))
        samples.append(best)
        tokens, views = tokens - sizes[best][0], views - sizes[best][1]
    texts = [*[TEXT_TOKENS] * (len(samples) - 1), tokens + TEXT_TOKENS] if samples else [tokens]
    return PackedRow(tuple(samples) or ((),), tuple(texts), max(1, round(LABELLED_SHARE * stage.pack_tokens)))


def make_meta_batch(model: OneVision, row: PackedRow) -> Batch:
    """A batch of these samples in which only sizes are real: its tensors are on the meta device, but for the packing.

    Visual rows have no real places. Labels stand at the end of each sequence, in proportion to its length.
    """
    by_sample = [model.router.plan(sample) for sample in row.samples]
    shown = [sum(r.plan.num_tokens for r in routed) for routed in by_sample]
    lengths = [visual + text for visual, text in zip(shown, row.text_tokens, strict=True)]
    ends = tuple(accumulate(lengths, initial=0))
    labels = [after - before for before, after in pairwise(row.labels * end // ends[-1] for end in ends)]
    labelled = [index for count, end in zip(labels, ends[1:], strict=True) for index in range(end - count, end)]
    plans = tuple(routed for sample in by_sample for routed in sample)
    unique_views = sum(len(r.plan.unique_views) for r in plans)
    with torch.device("cpu"):
        packing, views = Packing.from_lengths(lengths), map_batch_views(plans)
        builder = GatherLayoutBuilder.from_model(model)
        layout = builder.make_sample_layout(plans, torch.arange(sum(shown)), model.router)
        layout = None if layout is None else prepare_backward(layout).to("meta")
    with torch.device("meta"):
        ids, rows = (torch.empty(n, dtype=torch.int64) for n in (ends[-1], len(labelled)))
        question = torch.empty(unique_views, TEXT_TOKENS, dtype=torch.int64)
        return Batch(
            input_ids=ids,
            position_ids=ids,
            targets=ids,
            packing=packing,
            pixels=torch.empty(unique_views, 3, *model.encoder.view_px, dtype=torch.uint8),
            plans=plans,
            visual_positions=torch.empty(sum(shown), dtype=torch.int64),
            instructions=Instructions(question, question.bool())
            if has_capability(model.projector, InstructedProjector)
            else None,
            views=None if views is None else views.to("meta"),
            layout=layout,
            precomputed_target_rows=RowIndex(rows, tuple(labels), tuple(labelled), ends),
        )


def count_batch_activations(model: OneVision, batch: Batch) -> ActivationMemory:
    """What the model keeps for backward on a batch."""
    return count_activations(model, list_blocks(model), lambda: model(batch))
