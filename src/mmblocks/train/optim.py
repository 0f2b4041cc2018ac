"""The optimizer of a stage: one learning rate per part, no decay on biases, norms and marks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW

from mmblocks.model.onevision import OneVision
from mmblocks.model.trainable import LORA, list_trainable_parameters
from mmblocks.train.stages import Lora, PartSettings, Stage


def make_optimizer(model: OneVision, stage: Stage) -> AdamW:
    """AdamW over the stage's parts, each with its own rate (`base_lr` in its groups) and decay."""
    groups = [
        group
        for name, learning in find_trained_parts(stage).items()
        for group in _groups(list_trainable_parameters(model, name), name, learning.lr, _decay(learning, stage))
    ]
    return AdamW(groups, betas=(0.9, stage.beta2))


def find_trained_parts(stage: Stage) -> dict[str, PartSettings | Lora]:
    """What a stage trains, and how fast: parts of the model and, last, the adapters."""
    return {**stage.part_settings, **({} if stage.lora is None else {LORA: stage.lora})}


def _decay(learning: PartSettings | Lora, stage: Stage) -> float:
    return stage.weight_decay if learning.weight_decay is None else learning.weight_decay


def _groups(parameters: list[nn.Parameter], name: str, lr: float, decay: float) -> Iterator[dict[str, Any]]:
    learning = [p for p in parameters if p.requires_grad]
    for chosen, weight_decay in (
        ([p for p in learning if p.ndim > 1], decay),
        ([p for p in learning if p.ndim <= 1], 0.0),
    ):
        if chosen:
            yield {"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": weight_decay, "part": name}


def scale_learning_rates(optimizer: AdamW, factor: float) -> None:
    """Set every group's rate to its base times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def compute_lr_factor(
    step: int, steps: int, warmup: float, shape: Literal["cosine", "linear", "constant"] = "cosine"
) -> float:
    """Factor on the learning rate at a step: linear from 0 over the warm-up share, then to 0 along a cosine or a line."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[shape]
