"""One optimizer step over all processes: every labelled token of the step weighs the same, wherever it was computed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from mmblocks.batch import Batch
from mmblocks.model.onevision import OneVision
from mmblocks.reprs import repr_by_shape
from mmblocks.train.batches import Made
from mmblocks.train.distributed import World, add_up_gradients
from mmblocks.train.finite import Guard, whole
from mmblocks.train.objectives import Objective
from mmblocks.train.optim import set_rate
from mmblocks.train.reports.profiler import Panel
from mmblocks.train.stages import Stage

LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Done:
    """What a step did over all processes.

    loss, metrics: means over what the objective counts. norm: of all gradients together. These are tensors, so that
    nothing waits for a device that nobody asks. tokens, views: what went through the model.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    norm: Tensor
    tokens: int
    views: int
    __repr__ = repr_by_shape


@dataclass(frozen=True, slots=True)
class Stepper:
    """Takes steps with a model, an objective and an optimizer. Gradients are added over micro-batches and processes.

    guard: keeps losses and gradients that are not finite out of the weights. nothing: what is run where a process has no batch while others have one. sends_all: every micro-batch's gradients are
    added up over processes, not only their sum.
    """

    model: OneVision
    objective: Objective
    optimizer: AdamW
    stage: Stage
    world: World
    panel: Panel
    nothing: Batch
    sends_all: bool = False
    guard: Guard = field(default_factory=Guard)
    learning: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning", [p for g in self.optimizer.param_groups for p in g["params"]])

    def __call__(self, made: Made, factor: float, number: int = 0) -> Done | None:
        """Learn from this process' share of a step at `factor` times the learning rates. number: the step's, from 0.

        None, and nothing learned, when no process has anything to learn from (every record was left out). Raises
        `TrainingError`, with nothing learned, for a loss or gradients that are not finite (see `Guard`).
        """
        mine = [batch for batch in made.batches if batch is not None]
        for batch in mine:
            self.panel.count(batch)
        count, tokens, views = map(int, self.world.sum(*_sums(mine, self.objective)))
        if count == 0:
            return None
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: value / count for name, value in self._accumulate(made.batches, count).items()}
        loss = means.pop(LOSS)
        with self.panel.during("optimizer"):
            norm = self._clipped()
            self.guard.check(number, loss, norm, (p.grad for p in self.learning if p.grad is not None))
            set_rate(self.optimizer, factor)
            self.optimizer.step()
        return Done(loss, means, norm, tokens, views)

    def _accumulate(self, batches: Sequence[Batch | None], count: int) -> dict[str, Tensor]:
        """Forward and backward of every micro-batch; loss and metrics added up over all processes."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            add_up_gradients(self.model, self.sends_all or number + 1 == len(batches))
            with self.panel.during("forward"), autocast(self.stage, self.world):
                found = self.objective(self.model, self._ready(batch))
            total = found.total if batch is not None else 0 * found.total
            if total.requires_grad:  # text alone meets neither encoder nor projector
                with self.panel.during("backward"):
                    (total * (self.world.size / count)).backward()  # sharding averages gradients over processes
            for name, value in {LOSS: total.detach(), **found.metrics}.items():
                sums[name] = sums.get(name, 0) + value
        return self._over_processes(sums)

    def _over_processes(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.world.is_alone:
            return sums
        row = torch.stack([value.float() for value in sums.values()])
        dist.all_reduce(row)
        return dict(zip(sums, row.unbind(), strict=True))

    def _ready(self, batch: Batch | None) -> Batch:
        batch = self.nothing if batch is None else batch
        view_px = self.model.encoder.view_px
        return (batch if self.world.is_alone else batch.with_blank_view(view_px)).to(self.world.device)

    def _clipped(self) -> Tensor:
        """The norm of all gradients together before they were clipped."""
        for parameter in self.learning:  # a part that met nothing in this step still forgets its momentum
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return whole(nn.utils.clip_grad_norm_(self.learning, self.stage.clip))


def autocast(stage: Stage, world: World) -> AbstractContextManager[Any]:
    """The stage's precision in one process, where torch casts; a sharded model computes in the type it gathers."""
    wanted = stage.precision == "bfloat16" and world.is_alone
    return torch.autocast(world.device.type, torch.bfloat16, enabled=wanted)


def _sums(batches: Sequence[Batch], objective: Objective) -> tuple[int, int, int]:
    counts = [(objective.count(batch), batch.num_tokens, batch.num_views) for batch in batches]
    count, tokens, views = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    return count, tokens, views
