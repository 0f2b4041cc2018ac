"""What one process needs in a step of a stage, for any number of processes: counted on the meta device, without data."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.costs.activations import ActivationMemory
from mmblocks.model.costs.state import FLOAT32_BYTES, ParameterCount, StateBytes
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import read_settings
from mmblocks.train.distributed import list_blocks
from mmblocks.train.estimates.meta_stage import (
    PackedRow,
    count_batch_activations,
    freeze_for_stage,
    make_meta_batch,
    make_meta_stage_model,
    make_packed_row,
)
from mmblocks.train.objectives import objectives
from mmblocks.train.stages import Stage

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
"""Of a number in the type that forward and backward compute in; weights, their sums of gradients and Adam stay float32."""
SCALES_4_BIT = 1 / 64 + FLOAT32_BYTES / (64 * 256)
"""Bytes per weight of nf4's scales, of which one byte serves 64 weights and one float 256 scales."""
GATHERED_BLOCKS = 2
"""Blocks whose weights are whole at a time: the one that computes and the one that is fetched meanwhile."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one process at the fullest moment of a step.

    weights, gradients, optimizer, copies: its shares of the state. gathered: weights that are whole at the time, in the
    computing type. passing: gradients on their way to their shares. activations: what is kept for backward. between_rows:
    whole gradients that wait where a process has several rows a step and accumulate=local, not part of the total.
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
        return StateBytes(self.weights, self.gradients, self.optimizer, self.copies).total

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.gathered + self.passing + self.activations

    def to_dict(self) -> dict[str, int]:
        """Values that json takes, totals included."""
        return {**asdict(self), "state": self.state_bytes, "total": self.total_bytes}


def read_stages(recipe: Mapping[str, object]) -> list[Stage]:
    """The stages of a composed recipe, in bfloat16 where it leaves the precision open and names no CPU; none of a system."""
    stages = recipe.get("stages") or []
    assert isinstance(stages, Sequence)
    read = [read_settings(Stage, stage, f"stages.{number}") for number, stage in enumerate(stages)]
    on_gpu = recipe.get("device") != "cpu"
    return [stage.with_precision("bfloat16" if on_gpu else "float32") for stage in read]


def estimate_stage_memory(
    model: Mapping[str, object],
    stage: Stage,
    ranks: Sequence[int],
    *,
    gradient_checkpointing: bool = False,
    ema: bool = False,
    on_gpu: bool = True,
) -> list[StepMemory]:
    """The memory of a stage for each number of processes. `model` is the plain node of a recipe.

    on_gpu: fused layers keep less for backward than those that run on a CPU.

    A stage without `pack_tokens` reads its samples of a step in one row, which is then made of reference images.
    """
    from mmblocks.backbones.fused_layers import use_own_layers  # operators that `plan` without `--memory` does not need

    built = make_meta_stage_model(model, stage)
    activations: dict[PackedRow, ActivationMemory] = {}
    estimates = []
    for size in ranks:
        row = make_packed_row(built, stage, size)
        batch = make_meta_batch(built, row)
        if row not in activations:
            with nullcontext() if on_gpu else use_own_layers():
                activations[row] = count_batch_activations(built, batch)
        blocks = [list(block.parameters()) for block in list_blocks(built)]
        inside = {id(p) for block in blocks for p in block}
        root = ParameterCount.from_parameters((p for p in built.parameters() if id(p) not in inside), size)
        gathered, passing, kept = _find_fullest_moment(
            root,
            [ParameterCount.from_parameters(block, size) for block in blocks],
            activations[row].count_peak_bytes(gradient_checkpointing),
            DTYPE_BYTES[stage.with_precision("float32").precision],
            size,
        )
        state = count_state_bytes(built, stage, size, ema=ema)
        learning = sum(p.numel() for p in built.parameters() if p.requires_grad)
        estimates.append(
            StepMemory(
                ranks=size,
                tokens=batch.num_tokens,
                views=batch.num_views,
                **asdict(state),
                gathered=gathered,
                passing=passing,
                activations=kept,
                between_rows=FLOAT32_BYTES * learning if size > 1 else 0,
            )
        )
    return estimates


def estimate_stage_states(recipe: Mapping[str, object], seen: DryBuild) -> dict[str, StateBytes]:
    """What stays from step to step in each stage of a composed recipe on one process, by the stage's name.

    seen: the dry build of its model. Of a system, which has no stages: where every part learns.
    """
    model = seen.to_model(ModelSpec())
    stages, ema = read_stages(recipe), recipe.get("ema") is not None
    if not stages:
        return {"all parts": StateBytes.from_numbers(*[ParameterCount.from_parameters(model.parameters()).whole] * 2)}
    return {stage.name: count_state_bytes(freeze_for_stage(model, stage), stage, ema=ema) for stage in stages}


def count_state_bytes(model: OneVision, stage: Stage, ranks: int = 1, *, ema: bool = False) -> StateBytes:
    """One process' share of the state of a stage's model, whose frozen parts are frozen.

    Codes of quantized weights are whole on every process. A preference objective without adapters keeps a second model.
    """
    count = ParameterCount.from_parameters(model.parameters(), ranks)
    quantized, code_bytes = 0, 0.0
    if stage.lora is not None and stage.lora.bits is not None:
        weights = [m.base_layer.weight for m in model.backbone.modules() if hasattr(m, "adapter_layer_names")]
        quantized = sum(w.numel() for w in weights)
        scales = quantized * SCALES_4_BIT if stage.lora.bits == 4 else FLOAT32_BYTES * sum(w.shape[0] for w in weights)
        code_bytes = quantized * stage.lora.bits / 8 + scales
    reference = count.share if objectives.build(stage.objective).needs_reference(model) else 0
    return StateBytes.from_numbers(
        count.share,
        count.learning_share,
        copies=reference + ema * count.learning_share,
        quantized=quantized // ranks,
        code_bytes=round(code_bytes),
    )


def _find_fullest_moment(
    root: ParameterCount, blocks: Sequence[ParameterCount], kept: int, size: int, ranks: int
) -> tuple[int, int, int]:
    """(gathered, passing, kept) bytes when they are most together: as backward begins, or as it ends.

    At the end nothing is kept any more, and the gradients of what stays gathered are copied to be added up.
    """
    if ranks == 1:  # one process casts its weights as it meets them and keeps the casts until backward is over
        return (0 if size == FLOAT32_BYTES else size * (root.whole + sum(b.whole for b in blocks))), 0, kept
    largest = sorted((b.whole for b in blocks), reverse=True)[:GATHERED_BLOCKS]
    learning = max((b.learning for b in blocks), default=0)
    begins = size * (root.whole + sum(largest)), size * root.learning + (size + FLOAT32_BYTES) * learning, kept
    ends = size * root.whole, (size + FLOAT32_BYTES) * root.learning, 0
    return max(begins, ends, key=sum)
