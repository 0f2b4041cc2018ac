"""The model of a stage: read where the stage starts, arranged and sharded for it, and written whole at its end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from mmblocks.data.sample.processor import Processor
from mmblocks.data.video.guarded import ClipReader
from mmblocks.model.build import build_checked, wire, wire_template, wire_tokenizers
from mmblocks.model.checkpoint import at_home, load, read_spec, write_into
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping.recompose import recomposed
from mmblocks.storage import replaced_whole
from mmblocks.train.adapters.lora import merged, prepare, save_adapter
from mmblocks.train.distributed import World, blocks_of, filled_from_first, gathered, shard
from mmblocks.train.stages import Stage, TrainRun


def starting_model(settings: TrainRun) -> OneVision:
    """The model that a run starts from, on the CPU. The run has checked its settings."""
    if settings.weights in ("random", "pretrained"):
        return build_checked(ModelSpec.of(settings.model), weights=settings.weights, seed=settings.seed)
    return recomposed(load(settings.weights), ModelSpec.of(settings.model))


def stage_model(settings: TrainRun, stage: Stage, before: Path | None, world: World) -> OneVision:
    """The model that a stage trains; `before` is the folder of the model it starts from, None for the run's start.

    With many processes the first one reads it and each keeps its share.
    """
    if world.is_alone:
        return whole_model(settings, stage, before).to(world.device)
    whole = whole_model(settings, stage, before) if world.is_first else None
    model = arranged(_without_weights(settings, before), stage, settings)
    shard(model, world, stage.precision)
    filled_from_first(model, whole, world)
    return model


def whole_model(settings: TrainRun, stage: Stage, before: Path | None) -> OneVision:
    """The same in this process alone, on the CPU."""
    return arranged(starting_model(settings) if before is None else load(before), stage, settings)


def save_stage(
    model: OneVision, settings: TrainRun, stage: Stage, before: Path | None, folder: Path, world: World
) -> None:
    """Write the whole model that a stage has come to, adapters merged; the model in memory stays as it is.

    The adapters, and what learned beside them, are in `adapter/`, in PEFT's layout for the export of the model that the stage
    started from.
    """
    tensors = gathered(model, world)
    if not world.is_first:
        return
    if not world.is_alone:
        coded = stage.lora is not None and stage.lora.bits is not None  # codes are no part of a state dict
        model = (
            whole_model(settings, stage, before)
            if coded
            else arranged(_without_weights(settings, before), stage, settings)
        )
        model.load_state_dict(tensors, assign=True)
        model.backbone.lm.tie_weights()  # assigning gave tied embeddings a tensor each
    with replaced_whole(folder) as fresh:
        with merged(model):
            write_into(model, fresh)
        if stage.lora is not None:
            save_adapter(model, fresh / "adapter")


def arranged(model: OneVision, stage: Stage, settings: TrainRun) -> OneVision:
    """A loaded model as its stage has it: visual tokenizers, adapters, what learns, how blocks run."""
    if stage.tokenizer:
        spec = replace(model.spec, tokenizer={**model.spec.tokenizer, **stage.tokenizer})
        model.router = wire_tokenizers(spec, model.encoder, model.projector)
    prepare(model, stage, seed=settings.seed)
    for block in blocks_of(model) if settings.recompute else []:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for block in blocks_of(model) if settings.compile else []:
        block.compile()
    return model


def stage_processor(model: OneVision, stage: Stage, settings: TrainRun) -> Processor:
    """The data side of a stage, with the chat template, limits and clip reader of its own."""
    template = wire_template(stage.template, model.backbone) if stage.template else None
    clips = ClipReader(settings.video_deadline_s, quarantine=Path(settings.out) / "quarantine.jsonl")
    processor = Processor.of(
        model,
        template=template,
        max_tokens=stage.max_tokens,
        visuals=stage.visuals,
        seed=settings.seed,
        overlong=stage.overlong,
    )
    return replace(processor, clips=clips)


def _without_weights(settings: TrainRun, before: Path | None) -> OneVision:
    folder = before or (None if settings.weights in ("random", "pretrained") else Path(settings.weights))
    with torch.device("meta"):
        if folder is None:
            return wire(ModelSpec.of(settings.model))
        model = wire(at_home(read_spec(folder), folder))
    model.spec = read_spec(folder)
    return model if before is not None else recomposed(model, ModelSpec.of(settings.model))
