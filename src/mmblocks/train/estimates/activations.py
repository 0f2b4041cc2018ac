"""A stage without weights and data, on the meta device: its model, a full packed row, what a forward pass keeps of it.

Nothing is computed. What autograd saves for backward is counted, each storage once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from math import ceil, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmblocks.batch import Batch, GatherLayout, Instructions, Packing, RowIndex
from mmblocks.components import InstructedProjector, has_capability
from mmblocks.data.sample.layout import GatherLayoutBuilder, map_batch_views, prepare_backward
from mmblocks.model.budget import parse_visual_shape
from mmblocks.model.build import build_from_spec, build_router, set_dtype
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.model.trainable import train_only
from mmblocks.shapes import RoutedPlan, VisualShape
from mmblocks.train.distributed import list_blocks
from mmblocks.train.stages import Lora, Stage

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


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """Bytes that a forward pass keeps for backward.

    saved: all that autograd saves. entering: what is saved outside of the repeated blocks, and what enters them. block:
    the most that one block saves beside that.
    """

    saved: int
    entering: int
    block: int

    def count_peak_bytes(self, gradient_checkpointing: bool) -> int:
        """At the fullest moment: everything, or with `gradient_checkpointing` what enters the blocks and the inside of one."""
        return self.entering + self.block if gradient_checkpointing else self.saved


# A model and a batch without data -----------------------------------------------------------------------------------


def make_meta_stage_model(model: Mapping[str, Any] | ModelSpec, stage: Stage) -> OneVision:
    """The stage's model on the meta device, in the type it computes in, with what it trains and with its tokenizers."""
    spec = model if isinstance(model, ModelSpec) else ModelSpec.from_dict(model)
    with torch.device("meta"):
        built = build_from_spec(spec, backbone_on_meta=True)
        shown = ModelSpec.from_dict({"tokenizer": {**spec.tokenizer, **stage.tokenizer}, "pooling": spec.pooling})
        built.router = build_router(shown, built.encoder, built.projector)
        if stage.lora is not None:
            _add_adapters(built, stage.lora)
    train_only(built, stage.train)
    return set_dtype(built, getattr(torch, stage.precision)).train()


def _add_adapters(model: OneVision, lora: Lora) -> None:
    """Adapters around whole weights: codes of fewer bits cannot be made without the weights, and are counted instead."""
    from mmblocks.train.adapters.lora import add_lora

    add_lora(model, replace(lora, bits=None))


def make_packed_row(model: OneVision, stage: Stage, ranks: int) -> PackedRow:
    """A row that is as full as the stage's caps allow, or a process' samples of a step where there are no caps."""
    shapes = [tuple(map(parse_visual_shape, words)) for words in REFERENCE_SAMPLES]
    if stage.pack_tokens is None:
        samples = [shapes[1]] * ceil((stage.global_batch_size or 1) / ranks)
        return PackedRow(tuple(samples), (TEXT_TOKENS,) * len(samples), TEXT_TOKENS * len(samples))
    sizes = {sample: _sizes(model, sample) for sample in shapes}
    samples, left = _filled(sizes, stage.pack_tokens, stage.pack_views)
    texts = [TEXT_TOKENS] * len(samples)
    texts[-1:] = [texts[-1] + left] if samples else []
    if not samples:
        samples, texts = [()], [left]
    return PackedRow(tuple(samples), tuple(texts), max(1, round(LABELLED_SHARE * stage.pack_tokens)))


def _sizes(model: OneVision, sample: Sequence[VisualShape]) -> tuple[int, int]:
    """Tokens and images of a reference sample."""
    plans = [routed.plan for routed in model.router.plan(sample)]
    return sum(p.num_tokens for p in plans) + TEXT_TOKENS, sum(len(p.unique_views) for p in plans)


def _filled(
    sizes: Mapping[tuple[VisualShape, ...], tuple[int, int]], tokens: int, views: int | None
) -> tuple[list[tuple[VisualShape, ...]], int]:
    """Samples that fill a row so that tokens and views run out together, and the tokens that are left over."""
    samples: list[tuple[VisualShape, ...]] = []
    room = tokens if views is None else views
    while True:
        fitting = {s: size for s, size in sizes.items() if size[0] <= tokens and size[1] <= room}
        if not fitting:
            return samples, tokens
        best = min(fitting, key=lambda s: abs(log(fitting[s][1] / fitting[s][0]) - log(room / tokens)))
        samples.append(best)
        tokens, room = tokens - sizes[best][0], room - sizes[best][1]


def make_meta_batch(model: OneVision, row: PackedRow) -> Batch:
    """A batch of these samples in which only sizes are real: its tensors are on the meta device, but for the packing."""
    by_sample = [model.router.plan(sample) for sample in row.samples]
    shown = [sum(r.plan.num_tokens for r in routed) for routed in by_sample]
    lengths = [visual + text for visual, text in zip(shown, row.text_tokens, strict=True)]
    plans = tuple(chain.from_iterable(by_sample))
    images = sum(len(r.plan.unique_views) for r in plans)
    with torch.device("cpu"):
        packing, layout, views = Packing.from_lengths(lengths), _layout(model, plans), map_batch_views(plans)
    with torch.device("meta"):
        ids = torch.empty(sum(lengths), dtype=torch.int64)
        return Batch(
            input_ids=ids,
            position_ids=ids,
            targets=ids,
            packing=packing,
            pixels=torch.empty(images, 3, *model.encoder.view_px, dtype=torch.uint8),
            plans=plans,
            visual_positions=torch.empty(sum(shown), dtype=torch.int64),
            instructions=_instructions(images) if has_capability(model.projector, InstructedProjector) else None,
            views=None if views is None else views.to("meta"),
            layout=None if layout is None else layout.to("meta"),
            precomputed_target_rows=_last_rows(_spread(row.labels, lengths), lengths),
        )


def _layout(model: OneVision, plans: Sequence[RoutedPlan]) -> GatherLayout | None:
    """As a data worker makes it, with visual rows in places of no meaning."""
    rows = torch.arange(sum(routed.plan.num_tokens for routed in plans))
    layout = GatherLayoutBuilder.from_model(model).make_sample_layout(plans, rows, model.router)
    return None if layout is None else prepare_backward(layout)


def _spread(labels: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """Labels of each sequence, in proportion to its length."""
    ends = [labels * end // sum(lengths) for end in accumulate(lengths, initial=0)]
    return tuple(end - start for start, end in pairwise(ends))


def _last_rows(counts: Sequence[int], lengths: Sequence[int]) -> RowIndex:
    """So many rows at the end of each sequence, as answers stand."""
    ends = tuple(accumulate(lengths, initial=0))
    places = [place for count, end in zip(counts, ends[1:], strict=True) for place in range(end - count, end)]
    return RowIndex(torch.empty(len(places), dtype=torch.int64), tuple(counts), tuple(places), ends)


def _instructions(images: int) -> Instructions:
    ids = torch.empty(images, TEXT_TOKENS, dtype=torch.int64)
    return Instructions(ids, torch.empty(images, TEXT_TOKENS, dtype=torch.bool))


# What a forward pass keeps ------------------------------------------------------------------------------------------


def count_batch_activations(model: OneVision, batch: Batch) -> ActivationMemory:
    """What the model keeps for backward on a batch.

    Attention is counted as fused kernels keep it: queries, keys, values, output and one float32 per query and head.
    """
    return count_activations(model, list_blocks(model), lambda: model(batch))


def count_activations(model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], Any]) -> ActivationMemory:
    """What any model keeps for backward in a run on the meta device, and what of it in `blocks`. Attention as above."""
    counter = _ActivationCounter(model)
    with counter.track_blocks(blocks), torch.enable_grad(), _FusedAttention():
        run()
    return counter.to_activation_memory()


class _ActivationCounter:
    """Storages that autograd saves, by where: outside of blocks or in which of them. Weights are not counted."""

    def __init__(self, model: nn.Module) -> None:
        own = chain(model.parameters(), model.buffers())
        self.weights = {_to_storage_key(t): t.untyped_storage() for t in own}
        self.outside: dict[int, int] = {}
        self.inputs: dict[int, int] = {}
        self.blocks: list[dict[int, int]] = []
        self.inside = False
        self.alive: list[Tensor] = []

    @contextmanager
    def track_blocks(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Count what is saved in this context, with these modules as blocks."""
        handles = [h for block in blocks for h in self._watched(block)]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._record_saved, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _watched(self, block: nn.Module) -> tuple[Any, Any]:
        before = block.register_forward_pre_hook(self._enter_block, with_kwargs=True)
        return before, block.register_forward_hook(self._leave_block)

    def _enter_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering = list(_list_tensors((args, kwargs)))
        self.inside = torch.is_grad_enabled()
        self.blocks.append({})
        if any(t.requires_grad for t in chain(entering, block.parameters())):
            for tensor in entering:
                self._record_storage(tensor, self.inputs)

    def _leave_block(self, *_: Any) -> None:
        self.inside = False

    def _record_saved(self, tensor: Tensor) -> Tensor:
        self._record_storage(tensor, self.blocks[-1] if self.inside else self.outside)
        return tensor

    def _record_storage(self, tensor: Tensor, where: dict[int, int]) -> None:
        if (key := _to_storage_key(tensor)) not in self.weights:
            self.alive.append(tensor)  # or the next storage could get the same key
            where[key] = tensor.untyped_storage().nbytes()

    def to_activation_memory(self) -> ActivationMemory:
        entering = {**self.outside, **self.inputs}
        saved = {**self.outside, **{key: size for block in self.blocks for key, size in block.items()}}
        beside = (sum(size for key, size in block.items() if key not in entering) for block in self.blocks)
        return ActivationMemory(sum(saved.values()), sum(entering.values()), max(beside, default=0))


def _to_storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _list_tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        yield from chain.from_iterable(map(_list_tensors, nest.values()))
    elif isinstance(nest, tuple | list):
        yield from chain.from_iterable(map(_list_tensors, nest))


class _FusedAttention(TorchFunctionMode):
    """torch's attention on the meta device would keep all scores; this keeps what the fused kernels keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            mask = (kwargs or {}).get("attn_mask")
            return _SavedAttention.apply(*args[:3], None if mask is None else mask.to(args[0].dtype))  # added to scores
        return func(*args, **(kwargs or {}))


class _SavedAttention(torch.autograd.Function):
    """Attention of (..., heads, rows, channels) that computes nothing and keeps what its backward would need."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        heads, rows = q.shape[-3:-1]
        out = q.new_empty(*q.shape[:-3], rows, heads, v.shape[-1]).transpose(-3, -2)  # as the kernels lay it out
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("memory is counted in forward; nothing is learned on the meta device")
