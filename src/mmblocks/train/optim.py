"""The optimizer of a stage: one learning rate per part, no decay on biases, norms and marks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW

from mmblocks.model.onevision import OneVision
from mmblocks.model.trainable import part
from mmblocks.train.stages import Stage


def optimizer_for(model: OneVision, stage: Stage) -> AdamW:
    """AdamW over the stage's parts, each with its own rate (`base_lr` in its groups)."""
    groups = [
        g for name, rate in stage.train.items() for g in _groups(part(model, name), name, rate, stage.weight_decay)
    ]
    return AdamW(groups, betas=(0.9, stage.beta2))


def _groups(module: nn.Module, name: str, rate: float, decay: float) -> Iterator[dict[str, Any]]:
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameters, weight_decay in (
        ([p for p in learning if p.ndim > 1], decay),
        ([p for p in learning if p.ndim <= 1], 0.0),
    ):
        if parameters:
            yield {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": weight_decay, "part": name}


def set_rate(optimizer: AdamW, factor: float) -> None:
    """Set every group's rate to its base times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate at a step: linear from 0 over the warm-up share, then a cosine to 0."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
