"""Settings that a run chooses for its device where a recipe says "auto"."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

import torch

from mmblocks.cores import count_own_cores
from mmblocks.train.stages import Curriculum

log = logging.getLogger(__name__)
MOST_WORKERS = 8
"""A worker prefetches whole batches, so more of them take memory before they save time."""


def resolve_automatic(curriculum: Curriculum, device: torch.device) -> Curriculum:
    """The curriculum with the workers and the precision that this process' device is used with; what a GPU is given is logged."""
    workers = choose_workers(device) if curriculum.run.workers == "auto" else curriculum.run.workers
    precision = choose_precision(device)
    stages = tuple(stage.with_precision(precision) for stage in curriculum.stages)
    if workers and workers != curriculum.run.workers:
        log.info("workers=auto: %s, on %s with %d cores", workers, device.type, count_own_cores())
    if precision == "bfloat16" and stages != curriculum.stages:
        log.info("precision=auto: %s, on %s", precision, device.type)
    return replace(curriculum, run=replace(curriculum.run, workers=workers), stages=stages)


def choose_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the device has units for it."""
    has_units = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_units else "float32"


def choose_workers(device: torch.device) -> int:
    """None beside a CPU, whose cores compute the model; else the cores of this process but one, of those of the machine that
    torchrun's processes share."""
    if device.type == "cpu":
        return 0
    return max(1, min(count_own_cores() - 1, MOST_WORKERS))
