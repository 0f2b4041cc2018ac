"""How the cost of a conversation grows with images, frames and resolution: counted on the meta device, nothing is run.

Beside ours stands the naive path: every view encoded, every cell projected, every row of every layer computed, logits of
every row. Attention of the language model counts the half that causality leaves, for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.backbones.fused_layers import use_own_layers
from mmblocks.batch import Batch
from mmblocks.model.checks.limits import count_kv_bytes_per_token
from mmblocks.model.costs.activations import count_activations
from mmblocks.model.costs.flops import count_run_flops
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import Size, VisualShape
from mmblocks.train.distributed import list_blocks
from mmblocks.train.estimates import meta_stage
from tests.bench.suites.memory import META, make_training_model
from tests.bench.suites.ours import select_last_rows
from tests.bench.suites.rows import Row, describe_machine, describe_versions, find_commit
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import Scale

NAME = "scale"
PICTURE = Size(480, 640)
CLIP = Size(720, 1280)
AXES: Mapping[str, tuple[int, ...]] = {
    "images": (1, 2, 4, 8, 16, 32),
    "frames": (1, 2, 4, 8, 16, 32, 64, 128),
    "resolution": (384, 512, 640, 768, 960, 1152, 1536, 1920, 2304),
}
"""Images in a conversation, frames of a video, pixels of a square image's side."""
LEAST_AXES: Mapping[str, tuple[int, ...]] = {"images": (1, 2), "frames": (1, 2), "resolution": (56, 112)}
TEXT_TOKENS = 64
LABELS = 32
KV_BYTES = 2
"""Per number of the cache: bfloat16."""
FLOPS_PARTS = ("encoder", "projector", "backbone", "head")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one conversation. flops: by part of a prefill. kept_bytes: what its training step keeps for backward."""

    flops: Mapping[str, int]
    kept_bytes: int


def measure(run: Run) -> Iterator[Row]:
    """FLOPs of a prefill by part, tokens, views, cache, and bytes kept for backward, along `AXES`; all in bfloat16."""
    run = replace(run, device=META, dtype=torch.bfloat16)
    axes = LEAST_AXES if run.tiny else AXES
    model = make_training_model(_allow_frames(run.scale, max(axes["frames"])))
    facts = {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "commit": find_commit(),
    }  # asked once for some hundred rows
    for axis, values in axes.items():
        for value in values:
            run.require_time(15)
            yield from _measure_point(run, model, axis, value, facts)


def _allow_frames(scale: Scale, most: int) -> Scale:
    """A size whose clips may have so many frames."""
    return replace(scale, shown=replace(scale.shown, frames=most))


def _measure_point(run: Run, model: OneVision, axis: str, value: int, facts: Mapping[str, Any]) -> Iterator[Row]:
    conversation = meta_stage.PackedRow((list_visuals(axis, value),), (TEXT_TOKENS,), LABELS)
    batch = meta_stage.make_meta_batch(model, conversation)
    ours, naive = count_costs(model, batch, core=True), count_costs(model, batch, core=False)
    row = partial(run.row, NAME, f"{axis}={value}", **facts)
    per_token = count_kv_bytes_per_token(model.backbone.config, KV_BYTES)
    yield row("tokens", "tokens", batch.num_tokens)
    yield row("views", "views", _count_views(batch))
    yield row("key-value cache", "bytes", None if per_token is None else per_token * batch.num_tokens)
    for part in FLOPS_PARTS:
        yield row(f"prefill of the {part}", "FLOPs", ours.flops[part], naive.flops[part], setting="naive")
    yield row("prefill", "FLOPs", sum(ours.flops.values()), sum(naive.flops.values()), setting="naive")
    yield row("kept for backward", "bytes", ours.kept_bytes, naive.kept_bytes, setting="naive")


def list_visuals(axis: str, value: int) -> tuple[VisualShape, ...]:
    """The visuals of a conversation at a point of an axis."""
    if axis == "frames":
        return (VisualShape("video", CLIP, num_frames=value, fps=1.0),)
    if axis == "resolution":
        return (VisualShape("image", Size(value, value)),)
    return (VisualShape("image", PICTURE),) * value


# What is counted ----------------------------------------------------------------------------------------------------


def count_costs(model: OneVision, batch: Batch, *, core: bool) -> Cost:
    """The costs by the optimized core, or by the naive path."""
    if core:
        return Cost(_count_core_flops(model, batch), meta_stage.count_batch_activations(model, batch).saved)
    with use_own_layers():
        kept = count_activations(model, list_blocks(model), lambda: _run_naive(model, batch)).saved
    return Cost(_count_naive_flops(model, batch), kept)


def _count_core_flops(model: OneVision, batch: Batch) -> dict[str, int]:
    rows = select_last_rows(batch).to(META)
    x, encoded = _make_hidden(model, batch), replace(batch, features=_make_features(model, batch.num_views))
    return {
        "encoder": batch.num_views * _count_view_flops(model),
        "projector": count_flops(lambda: model.embed_tokens(encoded)),
        "backbone": count_flops(
            lambda: model.backbone.compute_hidden_states(x, batch.position_ids, batch.packing, rows), causal=True
        ),
        "head": count_flops(lambda: model.backbone.compute_logits(x[: len(rows.counts)])),
    }


def _count_naive_flops(model: OneVision, batch: Batch) -> dict[str, int]:
    x, views = _make_hidden(model, batch), _count_views(batch)
    return {
        "encoder": views * _count_view_flops(model),
        "projector": count_flops(lambda: model.projector(_make_features(model, views))),
        "backbone": count_flops(
            lambda: model.backbone.compute_hidden_states(x, batch.position_ids, batch.packing), causal=True
        ),
        "head": count_flops(lambda: model.backbone.compute_logits(x)),
    }


@lru_cache(maxsize=1)
def _count_view_flops(model: OneVision) -> int:
    """FLOPs of the encoder, which looks at every view by itself."""
    return count_flops(lambda: model.encoder(_make_pixel_inputs(model, 1)))


def _run_naive(model: OneVision, batch: Batch) -> None:
    """A training step that projects every cell and takes logits of every row in float32."""
    projected = model.projector(model.encoder(_make_pixel_inputs(model, _count_views(batch)))).flatten(0, -2)
    visual = projected[: len(batch.visual_positions)]  # as many rows as the plan takes; which of them changes no size
    if len(visual) < len(batch.visual_positions):  # newlines
        visual = F.pad(visual, (0, 0, 0, len(batch.visual_positions) - len(visual)))
    x = model.backbone.embed_tokens(batch.input_ids).index_copy(0, batch.visual_positions, visual)
    hidden = model.backbone.compute_hidden_states(x, batch.position_ids, batch.packing)
    F.cross_entropy(model.backbone.compute_logits(hidden).float(), batch.targets, reduction="sum")


def _count_views(batch: Batch) -> int:
    return sum(len(routed.plan.views) for routed in batch.plans)


def _make_hidden(model: OneVision, batch: Batch) -> Tensor:
    return torch.empty(batch.num_tokens, model.backbone.dim, dtype=torch.bfloat16, device=META)


def _make_pixel_inputs(model: OneVision, views: int) -> Tensor:
    return torch.empty(views, 3, *model.encoder.view_px, dtype=torch.bfloat16, device=META)


def _make_features(model: OneVision, views: int) -> Tensor:
    return torch.empty(views, *model.encoder.grid, model.encoder.dim, dtype=torch.bfloat16, device=META)


def count_flops(run: Callable[[], object], *, causal: bool = False) -> int:
    """FLOPs of a run on the meta device; a multiplication and an addition are two. causal: half of attention's only."""
    total, attention = count_run_flops(run)
    return total - (attention // 2 if causal else 0)
