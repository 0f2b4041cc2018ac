"""The least work and time that physics leaves: multiplications that cannot be avoided, at rates a GPU reaches."""

from __future__ import annotations

from typing import Any

from mmblocks.batch import Batch
from mmblocks.model.onevision import OneVision
from tests.bench.suites.run import Run

MATMUL_FLOPS = {"cuda": 790e12}
"""Dense bfloat16 multiplications a second that an H200 reaches on large matrices (its data sheet says 989e12)."""
COPY_BYTES = {"cuda": 4.3e12}
"""Bytes a second that an H200 reaches when it copies, read and written counted."""


def time_of(flops: float, run: Run) -> float | None:
    """Seconds that so many multiplications take at the ceiling of the run's device; None where it is not known."""
    rate = MATMUL_FLOPS.get(run.device.type)
    return None if rate is None else flops / rate


def encoder_flops(model: OneVision, views: int) -> float:
    """Forward through the vision tower."""
    config = model.encoder.vision_model.config
    cells, dim, mlp = model.encoder.grid.area, config.hidden_size, config.intermediate_size
    block = 8 * cells * dim**2 + 4 * cells * dim * mlp + 4 * cells**2 * dim
    return views * (config.num_hidden_layers * block + 2 * cells * dim * 3 * config.patch_size**2)


def projector_flops(model: OneVision, cells: int, tokens: int) -> float:
    """Forward through both layers: the first on the cells that are used, the second on visual tokens."""
    dim, out = model.encoder.dim, model.backbone.dim
    return 2 * dim * out * cells + 2 * out**2 * tokens


def backbone_flops(model: OneVision, batch: Batch, rows: int) -> float:
    """Forward through the decoder and the vocabulary, only `rows` of them needed, attention causal."""
    config: Any = model.backbone.config
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or width // heads
    keys = 2 * width * config.num_key_value_heads * head_dim
    others = 2 * width * heads * head_dim + 3 * width * config.intermediate_size
    tokens, depth = batch.num_tokens, config.num_hidden_layers
    linear = 2 * (keys * depth * tokens + others * ((depth - 1) * tokens + rows))
    pairs = sum(length**2 for length in batch.packing.lengths)
    return linear + 2 * (depth - 1) * pairs * heads * head_dim + 2 * width * config.vocab_size * rows


def forward_flops(model: OneVision, batch: Batch, rows: int) -> float:
    """Forward through everything, of which `rows` rows are needed at the end."""
    views, visual = batch.num_views, batch.visual_positions.numel()
    cells = views * model.encoder.grid.area
    return encoder_flops(model, views) + projector_flops(model, cells, visual) + backbone_flops(model, batch, rows)
