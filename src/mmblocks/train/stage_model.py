"""The model of a stage: loaded from where the stage starts, prepared and sharded for it, and written whole at its end."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from mmblocks.data.sample.processor import Processor
from mmblocks.data.video import count_decoding_threads
from mmblocks.data.video.video_reader import VideoReader
from mmblocks.model import loading
from mmblocks.model.build import build_checked, build_from_spec, build_router, build_template
from mmblocks.model.checkpoint import load, localise_spec, read_spec, write_into
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping.recompose import recompose_model
from mmblocks.storage import replace_folder
from mmblocks.train.adapters.lora import merge_temporarily, prepare_trainable, save_adapter
from mmblocks.train.distributed import World, gather_state_dict, list_blocks, load_from_rank0, shard_model
from mmblocks.train.stages import Stage, TrainRun
from mmblocks.train.starting_model import NO_MODEL


def make_initial_model(settings: TrainRun) -> OneVision:
    """The model that a run starts from, on the CPU. The run has checked its settings."""
    if settings.weights in ("random", "pretrained"):
        return build_checked(ModelSpec.from_dict(settings.model), weights=settings.weights, seed=settings.seed)
    return recompose_model(loading.load(settings.weights), ModelSpec.from_dict(settings.model))


def make_stage_model(
    settings: TrainRun, stage: Stage, before: Path | None, world: World, methods: Iterable[str] = ()
) -> OneVision:
    """The model that a stage trains; `before` is the folder of the model it starts from, None for the run's start.

    With many processes rank 0 reads it and each keeps its share. methods: see `shard_model`.
    """
    if world.is_single_process:
        return make_whole_model(settings, stage, before).to(world.device)
    whole = make_whole_model(settings, stage, before) if world.is_rank0 else None
    model = prepare_for_stage(_wire_without_weights(settings, before), stage, settings)
    shard_model(model, world, stage.precision, methods)
    load_from_rank0(model, whole, world)
    return model


def make_whole_model(settings: TrainRun, stage: Stage, before: Path | None) -> OneVision:
    """The same model in this process alone, on the CPU."""
    return prepare_for_stage(make_initial_model(settings) if before is None else load(before), stage, settings)


def gather_model(model: OneVision, settings: TrainRun, stage: Stage, before: Path | None, world: World) -> OneVision:
    """The model with all its weights in each process, in the type that the stage computes in; alone it is the model itself."""
    if world.is_single_process:
        return model
    whole = make_whole_model(settings, stage, before)
    whole.load_state_dict(gather_state_dict(model, world, on_all=True))
    return whole.to(world.device, torch.bfloat16 if stage.precision == "bfloat16" else torch.float32)


def save_stage(
    model: OneVision, settings: TrainRun, stage: Stage, before: Path | None, folder: Path, world: World
) -> None:
    """Write the whole model that a stage has come to, adapters merged; the model in memory stays as it is.

    The adapters, and what learned beside them, are in `adapter/`, in PEFT's layout for the export of the model that the stage
    started from.
    """
    tensors = gather_state_dict(model, world)
    if not world.is_rank0:
        return
    if not world.is_single_process:
        coded = stage.lora is not None and stage.lora.bits is not None  # codes are no part of a state dict
        model = (
            make_whole_model(settings, stage, before)
            if coded
            else prepare_for_stage(_wire_without_weights(settings, before), stage, settings)
        )
        model.load_state_dict(tensors, assign=True)
        model.backbone.lm.tie_weights()  # assigning gave tied embeddings a tensor each
    with replace_folder(folder) as fresh:
        with merge_temporarily(model):
            write_into(model, fresh)
        if stage.lora is not None:
            save_adapter(model, fresh / "adapter", source=_name_base(settings, before))


def _name_base(settings: TrainRun, before: Path | None) -> str | None:
    """The model that a stage starts from, as a reference; None where that is no whole model."""
    if before is not None:
        return str(before.resolve())
    if settings.weights in NO_MODEL:
        return None
    return str(Path(settings.weights).resolve()) if Path(settings.weights).exists() else settings.weights


def prepare_for_stage(model: OneVision, stage: Stage, settings: TrainRun) -> OneVision:
    """Give a loaded model the stage's visual tokenizers and adapters, freeze the rest, and choose how blocks run."""
    if stage.tokenizer:
        spec = replace(model.spec, tokenizer={**model.spec.tokenizer, **stage.tokenizer})
        model.router = build_router(spec, model.encoder, model.projector)
    prepare_trainable(model, stage, seed=settings.seed)
    for block in list_blocks(model) if settings.gradient_checkpointing else []:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for block in list_blocks(model) if settings.compile else []:
        block.compile()
    return model


def make_stage_processor(model: OneVision, stage: Stage, settings: TrainRun) -> Processor:
    """The data side of a stage, with the chat template, limits and video reader of its own."""
    template = build_template(stage.template, model.backbone) if stage.template else None
    video_reader = VideoReader(
        settings.video_deadline_s,
        quarantine=Path(settings.out) / "quarantine.jsonl",
        threads=count_decoding_threads(settings.num_workers),
    )
    processor = Processor.from_model(
        model,
        template=template,
        max_tokens=stage.max_tokens,
        visuals=stage.visuals,
        seed=settings.seed,
        overlong=stage.overlong,
    )
    return replace(processor, video_reader=video_reader)


def _wire_without_weights(settings: TrainRun, before: Path | None) -> OneVision:
    with torch.device("meta"):
        if before is not None:
            model = build_from_spec(localise_spec(read_spec(before), before))
            model.spec = read_spec(before)
            return model
        wanted = ModelSpec.from_dict(settings.model)
        if settings.weights in ("random", "pretrained"):
            return build_from_spec(wanted)
        model = build_from_spec(loading.read_located_spec(loading.locate_model(settings.weights)))
    return recompose_model(model, wanted)
