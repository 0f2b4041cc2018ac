"""What a training run is: a model, and stages that each say what is learned, from which data, how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmblocks.errors import ConfigError
from mmblocks.model.spec import PARTS
from mmblocks.settings import did_you_mean, faults_in, read


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a curriculum; it starts from the weights of the stage before.

    data: sources with their settings and a `weight`, the share of samples drawn from each.
    train: learning rate of each part that learns (encoder, projector, marks, backbone); parts left out are frozen.
    steps: optimizer steps at budget 1. batch_size: samples per step, packed into one row.
    warmup: share of the steps in which the rate rises linearly; it then falls to zero along a cosine.
    clip: largest norm of all gradients together. beta2: AdamW's memory of squared gradients.
    template: chat template of this stage instead of the model's own ("plain" in LLaVA's first stage).
    targets: "answers" trains what the assistant says; "original" repeats the masks of LLaVA's training code.
    visuals: "front" moves the visuals of each question before its text, "mixed" does so in half of the conversations.
    """

    name: str
    data: Sequence[Mapping[str, Any]]
    train: Mapping[str, float]
    steps: int
    batch_size: int
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    beta2: float = 0.999
    template: str | None = None
    targets: Literal["answers", "original"] = "answers"
    visuals: Literal["as_written", "front", "mixed"] = "as_written"


@dataclass(frozen=True, slots=True)
class Sight:
    """Pretraining of an encoder without a checkpoint on TinyWorld (see `mmblocks.train.sight`): how long, how fast."""

    steps: int
    batch_size: int = 32
    rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainRun:
    """A whole run, read from a composed recipe.

    weights: "random", "pretrained" (each component's checkpoint) or a folder saved by mmblocks.
    budget: factor on every stage's steps. out: folder of the run: checkpoints, metrics.jsonl and the final model.
    threads: CPU threads of torch, 0 for its own choice. workers: processes that make batches ahead.
    sight: settings of `Sight`, for an encoder that has to learn to see before the first stage.
    stop_after: name of the stage after which to stop, for running part of a curriculum.
    """

    model: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]
    out: str
    weights: str = "random"
    seed: int = 0
    budget: float = 1.0
    device: str = "auto"
    threads: int = 0
    workers: int = 0
    save_every: int = 200
    log_every: int = 10
    stop_after: str | None = None
    sight: Mapping[str, Any] | None = None
    resume: bool = True


@dataclass(frozen=True, slots=True)
class Curriculum:
    """A validated run: its settings, what comes before the stages, and the stages."""

    run: TrainRun
    stages: tuple[Stage, ...]
    sight: Sight | None = None


def read_run(raw: Mapping[str, Any]) -> Curriculum:
    """A composed recipe as a curriculum. Raises `ConfigError` that lists every fault with its key."""
    if faults := run_faults(raw):
        raise ConfigError("\n".join(faults))
    run = read(TrainRun, raw, "run")
    sight = None if run.sight is None else read(Sight, run.sight, "sight")
    return Curriculum(run, tuple(read(Stage, s, f"stages.{i}") for i, s in enumerate(run.stages)), sight)


def run_faults(raw: Mapping[str, Any]) -> list[str]:
    """Every fault of a run's plain values apart from its model, each naming the config key."""
    faults = faults_in(TrainRun, raw, "run")
    if isinstance(raw.get("sight"), Mapping):
        faults += faults_in(Sight, raw["sight"], "sight")
    stages = raw.get("stages", [])
    if not isinstance(stages, Sequence) or not stages:
        return [*faults, "stages: at least one stage is needed."]
    for i, stage in enumerate(stages):
        where = f"stages.{i}"
        faults += (
            faults_in(Stage, stage, where) if isinstance(stage, Mapping) else [f"{where}: {stage!r} is not a stage."]
        )
        faults += _stage_faults(stage, where) if isinstance(stage, Mapping) else []
    return faults


def _stage_faults(stage: Mapping[str, Any], where: str) -> list[str]:
    train = stage.get("train")
    parts = train if isinstance(train, Mapping) else {}
    faults = [f"{where}.train.{part}: no such part.{did_you_mean(part, PARTS)}" for part in parts if part not in PARTS]
    faults += [
        f"{where}.train.{p}={r!r}: a learning rate is a number above 0; leave the part out to freeze it."
        for p, r in parts.items()
        if not _is_positive(r)
    ]
    if isinstance(train, Mapping) and not train:
        faults.append(f"{where}.train: nothing is trained; name at least one of {', '.join(PARTS)}.")
    faults += [
        f"{where}.{name}={stage[name]!r} must be at least 1."
        for name in ("steps", "batch_size")
        if isinstance(stage.get(name), int) and stage[name] < 1
    ]
    if not stage.get("data"):
        faults.append(f"{where}.data: at least one source is needed.")
    return faults


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
