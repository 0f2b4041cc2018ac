"""What one process needs in a step of a stage: counted on the meta device, for any number of processes.

Weights, gradients and Adam's moments follow from sizes alone. What a forward pass keeps for backward is counted by
running it without data: every tensor that autograd saves, each storage once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from torch import Tensor

from mmblocks.model.onevision import OneVision
from mmblocks.train.distributed import list_blocks
from mmblocks.train.estimates.activations import (
    ActivationMemory,
    PackedRow,
    count_batch_activations,
    make_meta_batch,
    make_meta_stage_model,
    make_packed_row,
)
from mmblocks.train.objectives import objectives
from mmblocks.train.stages import Stage

FLOAT32_BYTES = 4
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
"""Of a number in the type that forward and backward compute in; weights, their sums of gradients and Adam stay float32."""
SCALES_4_BIT = 1 / 64 + FLOAT32_BYTES / (64 * 256)
"""Bytes per weight of nf4's scales, of which one byte serves 64 weights and one float 256 scales."""
GATHERED_BLOCKS = 2
"""Blocks whose weights are whole at a time: the one that computes and the one that is fetched meanwhile."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one process at the fullest moment of a step.

    weights, gradients, optimizer: its shares, float32. copies: its shares of frozen copies (a reference model, a moving
    average). gathered: weights that are whole at the time, in the computing type. passing: gradients on their way to
    their shares. activations: what is kept for backward. between_rows: whole gradients that wait where a process has
    several rows a step and accumulate=local, not part of the total.
    """

    ranks: int
    tokens: int
    views: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    gathered: int
    passing: int
    activations: int
    between_rows: int

    @property
    def state_bytes(self) -> int:
        """What stays from step to step."""
        return self.weights + self.gradients + self.optimizer + self.copies

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.gathered + self.passing + self.activations

    def to_dict(self) -> dict[str, int]:
        """Values that json takes, totals included."""
        return {**asdict(self), "state": self.state_bytes, "total": self.total_bytes}


def estimate_stage_memory(
    model: Mapping[str, Any],
    stage: Stage,
    ranks: Sequence[int],
    *,
    gradient_checkpointing: bool = False,
    ema: bool = False,
) -> list[StepMemory]:
    """The memory of a stage for each number of processes. `model` is the plain node of a recipe.

    A stage without `pack_tokens` reads its samples of a step in one row, which is then made of reference images.
    """
    built = make_meta_stage_model(model, stage)
    kept: dict[PackedRow, ActivationMemory] = {}
    found = []
    for size in ranks:
        row = make_packed_row(built, stage, size)
        if row not in kept:
            kept[row] = count_batch_activations(built, make_meta_batch(built, row))
        found.append(_estimate_step_memory(built, stage, row, kept[row], size, gradient_checkpointing, ema))
    return found


# Shares -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ParameterGroup:
    """Parameters that are gathered together: how many, how many learn, and a process' shares of both."""

    whole: int
    learning: int
    share: int
    learning_share: int


def count_shard_elements(parameter: Tensor, ranks: int) -> int:
    """Numbers of a parameter on one of `ranks` processes: FSDP2 deals out its first dimension in equal, padded parts."""
    if not parameter.ndim or ranks == 1:
        return parameter.numel()
    return ceil(parameter.shape[0] / ranks) * (parameter.numel() // max(parameter.shape[0], 1))


def _groups(model: OneVision, ranks: int) -> tuple[_ParameterGroup, list[_ParameterGroup]]:
    """What is gathered once for a whole step, and the blocks that come and go."""
    blocks = [list(block.parameters()) for block in list_blocks(model)]
    inside = {id(p) for block in blocks for p in block}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return _make_group(rest, ranks), [_make_group(block, ranks) for block in blocks]


def _make_group(parameters: Sequence[Tensor], ranks: int) -> _ParameterGroup:
    learning = [p for p in parameters if p.requires_grad]
    return _ParameterGroup(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in learning),
        sum(count_shard_elements(p, ranks) for p in parameters),
        sum(count_shard_elements(p, ranks) for p in learning),
    )


def _estimate_step_memory(
    model: OneVision,
    stage: Stage,
    row: PackedRow,
    kept: ActivationMemory,
    ranks: int,
    gradient_checkpointing: bool,
    ema: bool,
) -> StepMemory:
    root, blocks = _groups(model, ranks)
    every = [root, *blocks]
    coded, codes = _count_quantized(model, stage)
    learning = sum(g.learning_share for g in every)
    stored = sum(g.share for g in every)
    reference = stored if objectives.build(stage.objective).needs_reference(model) else 0
    gathered, passing, held = _find_fullest_moment(
        root, blocks, kept.count_peak_bytes(gradient_checkpointing), DTYPE_BYTES[stage.precision], ranks
    )
    batch = make_meta_batch(model, row)
    return StepMemory(
        ranks=ranks,
        tokens=batch.num_tokens,
        views=batch.num_views,
        weights=FLOAT32_BYTES * (stored - coded // ranks) + codes,
        gradients=FLOAT32_BYTES * learning,
        optimizer=2 * FLOAT32_BYTES * learning,
        copies=FLOAT32_BYTES * (reference + ema * learning),
        gathered=gathered,
        passing=passing,
        activations=held,
        between_rows=FLOAT32_BYTES * sum(g.learning for g in every) if ranks > 1 else 0,
    )


def _find_fullest_moment(
    root: _ParameterGroup, blocks: Sequence[_ParameterGroup], kept: int, size: int, ranks: int
) -> tuple[int, int, int]:
    """(gathered, passing, kept) bytes when they are most together: as backward begins, or as it ends.

    At the end nothing is kept any more, and the gradients of what stays gathered are copied to be added up.
    """
    if ranks == 1:  # one process casts its weights as it meets them and keeps the casts until backward is over
        return (0 if size == FLOAT32_BYTES else size * (root.whole + sum(b.whole for b in blocks))), 0, kept
    largest = sorted((b.whole for b in blocks), reverse=True)[:GATHERED_BLOCKS]
    learned = max((b.learning for b in blocks), default=0)
    begins = size * (root.whole + sum(largest)), size * root.learning + (size + FLOAT32_BYTES) * learned, kept
    ends = size * root.whole, (size + FLOAT32_BYTES) * root.learning, 0
    return max(begins, ends, key=sum)


def _count_quantized(model: OneVision, stage: Stage) -> tuple[int, int]:
    """Weights that a stage keeps in few bits, and the bytes of their codes, which every process holds whole."""
    if stage.lora is None or stage.lora.bits is None:
        return 0, 0
    weights = [m.base_layer.weight for m in model.backbone.modules() if hasattr(m, "adapter_layer_names")]
    count = sum(w.numel() for w in weights)
    scales = count * SCALES_4_BIT if stage.lora.bits == 4 else FLOAT32_BYTES * sum(w.shape[0] for w in weights)
    return count, round(count * stage.lora.bits / 8 + scales)
