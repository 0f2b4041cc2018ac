"""The optimizer of a stage: one learning rate per part, no weight decay on biases, norms and learned tokens."""

import math
from typing import Any, Literal

from torch.optim import AdamW

from mmblocks.model.onevision import OneVision
from mmblocks.model.trainable import list_trainable_parameters
from mmblocks.train.stages import Stage


def make_optimizer(model: OneVision, stage: Stage) -> AdamW:
    """AdamW over the stage's parts, each with its own learning rate (`base_lr` in its groups) and weight decay.

    On CUDA one kernel updates all weights of a dtype (torch's fused form).
    """
    groups: list[dict[str, Any]] = []
    for name, part in stage.trained_parts.items():
        trained = [p for p in list_trainable_parameters(model, name) if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        for parameters, decay in ((matrices, part.weight_decay), (vectors, 0.0)):
            if parameters:
                settings = {"lr": part.lr, "base_lr": part.lr, "weight_decay": decay, "part": name}
                groups.append({"params": parameters, **settings})
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    return AdamW(groups, betas=(0.9, stage.beta2), fused=on_gpu or None)


def scale_learning_rates(optimizer: AdamW, factor: float) -> None:
    """Set every group's learning rate to its base times `factor`."""
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
