"""The loop: stages in order, one packed batch per step, each step a pure function of (seed, stage, step, weights)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from mmblocks.batch import Batch
from mmblocks.data.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.build import build, wire_template
from mmblocks.model.checkpoint import load, save
from mmblocks.model.onevision import OneVision
from mmblocks.model.trainable import train_only
from mmblocks.train.batches import from_step, stage_batches
from mmblocks.train.check import require_run
from mmblocks.train.optim import optimizer_for, schedule, set_rate
from mmblocks.train.progress import Progress
from mmblocks.train.sight import learn_to_see
from mmblocks.train.stages import Curriculum, Stage, TrainRun, read_run
from mmblocks.train.state import Place, claim, restore_model, restore_optimizer, save_state

log = logging.getLogger(__name__)


def run(recipe: Mapping[str, Any]) -> Path:
    """Train a composed recipe, or go on where it stopped. Returns the folder of the finished model.

    Written to `out`: run.json (the recipe), metrics.jsonl, state/ (to resume from), stages/ (the model after each
    stage) and model/ (the last). Raises `ConfigError` with every fault before any weight is read.
    """
    require_run(recipe)
    curriculum = read_run(recipe)
    settings = curriculum.run
    if settings.threads:
        torch.set_num_threads(settings.threads)
    out = Path(settings.out)
    model = starting_model(settings).to(device_named(settings.device))
    place = claim(out, _plain(recipe), resume=settings.resume)
    resumed = (out / "state").is_dir()
    if resumed:
        restore_model(out, model)
        log.info("going on in %s at stage %d, step %d", out, place.stage, place.step)
    elif curriculum.sight is not None:
        learn_to_see(model, curriculum.sight, budget=settings.budget, seed=settings.seed, metrics=out / "metrics.jsonl")
    for number, stage in enumerate(curriculum.stages):
        if number >= place.stage:
            train_stage(model, curriculum, number, place.step if number == place.stage else 0)
            save(model, out / "stages" / f"{number}-{stage.name}")
            save_state(out, Place(number + 1), model, None)
        if stage.name == settings.stop_after:
            break
    return save(model, out / "model")


def train_stage(model: OneVision, curriculum: Curriculum, number: int, first: int) -> None:
    """Train one stage from step `first`, leaving a state to resume from every `save_every` steps."""
    settings, stage = curriculum.run, curriculum.stages[number]
    steps = max(1, round(stage.steps * settings.budget))
    out = Path(settings.out)
    train_only(model, stage.train)
    optimizer = optimizer_for(model, stage)
    if first:
        restore_optimizer(out, optimizer)
    batches = stage_batches(stage, number, steps, stage_processor(model, stage, settings.seed), settings.seed)
    model.train()
    with Progress(stage.name, first, steps, out / "metrics.jsonl", settings.log_every) as progress:
        for step, batch in enumerate(from_step(batches, first, settings.workers), start=first):
            torch.manual_seed(hash_of(settings.seed, number, step))
            loss = train_step(model, batch.to(model.device), optimizer, schedule(step, steps, stage.warmup), stage.clip)
            progress.report(step, loss, batch.num_tokens)
            if (step + 1) % settings.save_every == 0 and step + 1 < steps:
                save_state(out, Place(number, step + 1), model, optimizer)
    model.eval()


def train_step(model: OneVision, batch: Batch, optimizer: AdamW, factor: float, clip: float) -> float:
    """One optimizer step on one batch; returns the mean loss of its labelled rows."""
    loss = model(batch).mean
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(learning, clip)
    set_rate(optimizer, factor)
    optimizer.step()
    return loss.item()


def stage_processor(model: OneVision, stage: Stage, seed: int = 0) -> Processor:
    """The data side of a stage, with the stage's own chat template where it names one."""
    template = wire_template(stage.template, model.backbone) if stage.template else None
    return Processor.of(model, template=template, visuals=stage.visuals, seed=seed)


def starting_model(settings: TrainRun) -> OneVision:
    """The model that the first stage starts from."""
    if settings.weights in ("random", "pretrained"):
        return build(settings.model, weights=settings.weights, seed=settings.seed)
    return load(settings.weights)


def device_named(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, the CPU elsewhere."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as cause:
        raise ConfigError(f"device={name!r}: {cause}; write auto, cpu or cuda.") from cause


def hash_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(torch.tensor(numbers, dtype=torch.int64).mul(torch.tensor([1_000_003, 10_007, 1])).sum()) % 2**31


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to be the same run: all but where and how often they write."""
    free = ("out", "resume", "save_every", "log_every", "workers", "threads", "device", "stop_after")
    return {k: v for k, v in recipe.items() if k not in free}
