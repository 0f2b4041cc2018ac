"""One optimizer step over all processes: every labelled token of the step has the same weight, wherever it is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from mmblocks.batch import Batch
from mmblocks.model.onevision import OneVision
from mmblocks.reprs import format_by_shape
from mmblocks.train.batches import BatchFeed, StepInput
from mmblocks.train.distributed import World, set_gradient_sync
from mmblocks.train.finite_guard import FiniteGuard, to_full_tensor
from mmblocks.train.objectives import Objective
from mmblocks.train.optim import scale_learning_rates
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.stages import Stage

LOSS = "loss"


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of a step over all processes.

    loss, metrics: means over what the objective counts. norm: of all gradients together, before clipping. These are
    tensors, so that a step does not wait for the device. tokens, views: what went through the model.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    norm: Tensor
    tokens: int
    views: int
    __repr__ = format_by_shape


@dataclass(frozen=True, slots=True)
class Stepper:
    """Takes optimizer steps with a model and an objective. Gradients are added up over micro-batches and processes.

    empty_batch: what runs where a process has no batch while others have one. reduces_each_batch: reduce every
    micro-batch's gradients over processes, not only their sum. guard: keeps a loss and gradients that are not finite out
    of the weights.
    """

    model: OneVision
    objective: Objective
    optimizer: AdamW
    stage: Stage
    world: World
    profiler: StepProfiler
    empty_batch: Batch
    reduces_each_batch: bool = False
    guard: FiniteGuard = field(default_factory=FiniteGuard)
    parameters: list[nn.Parameter] = field(init=False)
    feed: BatchFeed = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "feed", BatchFeed(self.world.device))
        object.__setattr__(self, "parameters", [p for g in self.optimizer.param_groups for p in g["params"]])

    def __call__(self, step_input: StepInput, lr_factor: float, number: int = 0) -> StepResult | None:
        """Train on this process' share of a step at `lr_factor` times the learning rates. number: the step's, from 0.

        Returns None, and changes nothing, when no process has anything to train on (every record was left out). Raises
        `TrainingError`, and changes nothing, for a loss or gradients that are not finite (see `FiniteGuard`).
        """
        batches = [batch for batch in step_input.batches if batch is not None]
        for batch in batches:
            self.profiler.count_batch(batch)
        terms = sum(self.objective.count_loss_terms(batch) for batch in batches)
        sizes = sum(batch.num_tokens for batch in batches), sum(batch.num_views for batch in batches)
        count, tokens, views = map(int, self.world.sum_over_processes(terms, *sizes))
        if count == 0:
            return None
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._accumulate_gradients(step_input.batches, count)
        if not self.world.is_single_process:
            row = torch.stack([value.float() for value in sums.values()])
            dist.all_reduce(row)
            sums = dict(zip(sums, row.unbind(), strict=True))
        means = {name: value / count for name, value in sums.items()}
        loss = means.pop(LOSS)
        with self.profiler.time_phase("optimizer"):
            for parameter in self.parameters:  # a part that a step does not use still decays its moments
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            norm = to_full_tensor(nn.utils.clip_grad_norm_(self.parameters, self.stage.max_grad_norm))
            self.guard.check_step(number, loss, norm, (p.grad for p in self.parameters if p.grad is not None))
            scale_learning_rates(self.optimizer, lr_factor)
            self.optimizer.step()
        return StepResult(loss, means, norm, tokens, views)

    def _accumulate_gradients(self, batches: Sequence[Batch | None], count: int) -> dict[str, Tensor]:
        """Forward and backward of every micro-batch; returns the sums of loss and metrics over them."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            inputs = self.feed.move(self.empty_batch if batch is None else batch)
            if not self.world.is_single_process:
                inputs = inputs.with_blank_view(self.model.encoder.view_px)
            set_gradient_sync(self.model, self.reduces_each_batch or number + 1 == len(batches))
            with self.profiler.time_phase("forward"), make_autocast(self.stage, self.world):
                result = self.objective(self.model, inputs)
            total = result.total if batch is not None else 0 * result.total
            if total.requires_grad:  # text alone uses neither encoder nor projector
                with self.profiler.time_phase("backward"):
                    (total * (self.world.size / count)).backward()  # sharding averages gradients over processes
            for name, value in {LOSS: total.detach(), **result.metrics}.items():
                sums[name] = sums.get(name, 0) + value
        return sums


def make_autocast(stage: Stage, world: World) -> torch.autocast:
    """The stage's precision in one process, where torch casts; a sharded model computes in the type it gathers."""
    is_bfloat16 = stage.precision == "bfloat16" and world.is_single_process
    return torch.autocast(world.device.type, torch.bfloat16, enabled=is_bfloat16)
