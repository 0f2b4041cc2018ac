"""What a training run is: a model, and stages that each say what is learned, from which data, how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmblocks.errors import ConfigError
from mmblocks.model.spec import PARTS
from mmblocks.registry import Spec
from mmblocks.settings import format_suggestion, is_of_type, list_faults, read_settings

TRAINABLE_PARTS = (*PARTS, "lora")
"""What a stage can train: the parts of a model, and low-rank adapters on its backbone."""


@dataclass(frozen=True, slots=True)
class PartSettings:
    """How fast a part learns: its AdamW rate, and a weight decay where it is not the stage's."""

    lr: float
    weight_decay: float | None = None


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) on every linear layer of the backbone's blocks.

    They are merged into the backbone when the stage is saved. bits: 4 or 8 keeps the frozen backbone quantized while it
    learns (QLoRA, https://arxiv.org/abs/2305.14314). The defaults are those of LLaVA's training code.
    """

    lr: float
    weight_decay: float | None = None
    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.05
    bits: Literal[4, 8] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a curriculum; it starts from the weights of the stage before.

    data: sources with their settings (see `mmblocks.data.mixing.mixture`).
    train: what learns (encoder, projector, marks, backbone, lora), each with a learning rate or the fields of `Learning`
        (`Lora` for lora); parts left out are frozen.
    steps: optimizer steps at budget 1, samples being drawn by weight; or epochs: how often every conversation is read.
    global_batch_size: samples per step; or step_tokens: tokens per step, in packs of `pack_tokens`.
    pack_tokens, pack_views: most tokens and images of one packed row, that is of one forward pass; without
        `pack_tokens` a process takes its samples of a step in one row.
    order: "mixed" as drawn; "length" and "modality_length" group samples of like length as LLaVA's samplers do.
    max_tokens: longest sample, where it is less than the backbone takes. overlong: "raise" takes a longer one for a record
        that cannot be used (see `TrainRun.broken`), "skip" leaves it out and lists it in broken.jsonl, "cut_answer" cuts
        the end of its last answer, lists it in cut.jsonl, and raises where that is not enough.
    tokenizer: visual tokenizers by scenario that this stage uses instead of the model's own (fewer tiles, fewer frames).
    warmup: share of the steps in which the rate rises linearly; `schedule` says how it falls from there to zero.
    video: largest norm of all gradients together. beta2: AdamW's memory of squared gradients.
    precision: what forward and backward compute in; weights and optimizer stay float32.
    template: chat template of this stage instead of the model's own ("plain" in LLaVA's first stage).
    targets: "answers" trains what the assistant says; "original" repeats the masks of LLaVA's training code.
    visuals: "front" moves the visuals of each question before its text, "mixed" does so in half of the conversations.
    objective: what is minimised: "answers", or {name: dpo, ...} on pairs of answers.
    """

    name: str
    data: Sequence[Mapping[str, Any]]
    train: Mapping[str, Any]
    steps: int | None = None
    epochs: float | None = None
    global_batch_size: int | None = None
    step_tokens: int | None = None
    pack_tokens: int | None = None
    pack_views: int | None = None
    order: Literal["mixed", "length", "modality_length"] = "mixed"
    max_tokens: int | None = None
    overlong: Literal["raise", "skip", "cut_answer"] = "raise"
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    beta2: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    template: str | None = None
    targets: Literal["answers", "original"] = "answers"
    visuals: Literal["as_written", "front", "mixed"] = "as_written"
    objective: Spec = "answers"

    @property
    def part_settings(self) -> dict[str, PartSettings]:
        """Rate and decay of every part that learns, lora apart."""
        return {part: _learning(given) for part, given in self.train.items() if part != "lora"}

    @property
    def lora(self) -> Lora | None:
        """The adapters of this stage, None where it trains none."""
        given = self.train.get("lora")
        if given is None:
            return None
        return Lora(**given) if isinstance(given, Mapping) else Lora(given)


def _learning(given: Any) -> PartSettings:
    return PartSettings(**given) if isinstance(given, Mapping) else PartSettings(given)


@dataclass(frozen=True, slots=True)
class EncoderPretraining:
    """Pretraining of an encoder without a checkpoint on TinyWorld (see `mmblocks.train.encoder_pretraining`): how long, how fast."""

    steps: int
    global_batch_size: int = 32
    lr: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured while training: the loss on conversations that are not learned, TinyWorld's exact answers.

    every: steps between two measurements; the last step of a stage is always measured. samples: conversations of `data`.
    tiny: questions of each of TinyWorld's tasks, 0 for none.
    """

    every: int = 500
    data: Sequence[Mapping[str, Any]] = ()
    samples: int = 100
    tiny: int = 0


@dataclass(frozen=True, slots=True)
class TrainRun:
    """A whole run, read from a composed recipe.

    weights: "random", "pretrained" (each component's checkpoint) or a folder saved by mmblocks.
    budget: factor on every stage's steps or epochs. out: folder of the run: checkpoints, metrics.jsonl, the final model.
    threads: CPU threads of torch, 0 for its own choice. workers: processes that make batches ahead.
    encoder_pretraining: settings of `Sight`, for an encoder that has to learn to see before the first stage.
    first_stage, last_stage: names of the first and last stage to run, for part of a curriculum.
    save_every: steps between two states to resume from, of which the last `keep` stay; keep_best also keeps the weights
        that measured best (see `Evaluation`).
    broken: "raise" stops at a record that cannot be read, "skip" leaves it out and lists it in broken.jsonl.
    video_deadline_s: seconds after which reading a video is given up and the video counts as broken.
    gradient_checkpointing: compute the inside of every block again in backward instead of keeping it (activation checkpointing).
    accumulate: where gradients of several rows are added up when the model is sharded: "local" sends their sum once, which
        takes room for whole gradients; "sharded" sends each row's and keeps this process' share.
    compile: compile the encoder's and the backbone's blocks with torch.compile.
    ema: decay of a moving average of what learns, which is then what is saved.
    cache_features: folder in which the features of a frozen encoder are kept, for stages that read images again.
    track: "tensorboard" and "wandb", beside metrics.jsonl. visual_ablation_at: step of each stage at which loss with shuffled and
        blank visuals is compared with the true one, 0 for never. export: "transformers" writes the last model so, too.
    timeout_s: seconds that a process waits for the others before it gives up.
    resume_changed_data: go on although records or media of the stage have changed since the run stopped; the first change
        is in the log.
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
    keep: int = 1
    keep_best: bool = False
    log_every: int = 10
    first_stage: str | None = None
    last_stage: str | None = None
    encoder_pretraining: Mapping[str, Any] | None = None
    evaluate: Mapping[str, Any] | None = None
    broken: Literal["raise", "skip"] = "raise"
    video_deadline_s: float = 120.0
    gradient_checkpointing: bool = False
    accumulate: Literal["local", "sharded"] = "local"
    compile: bool = False
    ema: float | None = None
    cache_features: str | None = None
    track: Sequence[str] = ()
    visual_ablation_at: int = 0
    export: Literal["transformers"] | None = None
    timeout_s: float = 600.0
    resume: bool = True
    resume_changed_data: bool = False


CHANGEABLE_ON_RESUME = frozenset(
    {
        "accumulate",
        "cache_features",
        "compile",
        "device",
        "export",
        "keep",
        "log_every",
        "out",
        "gradient_checkpointing",
        "resume",
        "resume_changed_data",
        "save_every",
        "last_stage",
        "threads",
        "timeout_s",
        "track",
        "video_deadline_s",
        "workers",
    }
)
"""Settings that may change when a run goes on: where and how often it writes, how fast it is, where it ends."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """A validated run: its settings, what comes before the stages, the stages, and what is measured on the way."""

    run: TrainRun
    stages: tuple[Stage, ...]
    encoder_pretraining: EncoderPretraining | None = None
    evaluate: Evaluation | None = None


def read_run(raw: Mapping[str, Any]) -> Curriculum:
    """A composed recipe as a curriculum. Raises `ConfigError` that lists every fault with its key."""
    if faults := find_run_faults(raw):
        raise ConfigError("\n".join(faults))
    return read_checked_run(raw)


def read_checked_run(raw: Mapping[str, Any]) -> Curriculum:
    """As `read_run`, for a recipe that `run_faults` finds nothing in."""
    run = read_settings(TrainRun, raw, "run")
    encoder_pretraining = (
        None
        if run.encoder_pretraining is None
        else read_settings(EncoderPretraining, run.encoder_pretraining, "encoder_pretraining")
    )
    evaluate = None if run.evaluate is None else read_settings(Evaluation, run.evaluate, "evaluate")
    stages = tuple(read_settings(Stage, s, f"stages.{i}") for i, s in enumerate(run.stages))
    return Curriculum(run, stages, encoder_pretraining, evaluate)


def find_run_faults(raw: Mapping[str, Any]) -> list[str]:
    """Every fault of a run's plain values apart from its model, each naming the config key."""
    faults = list_faults(TrainRun, raw, "run")
    for name, schema in (("encoder_pretraining", EncoderPretraining), ("evaluate", Evaluation)):
        if isinstance(raw.get(name), Mapping):
            faults += list_faults(schema, raw[name], name)
    stages = raw.get("stages", [])
    if not isinstance(stages, Sequence) or not stages:
        return [*faults, "stages: at least one stage is needed."]
    for i, stage in enumerate(stages):
        where = f"stages.{i}"
        faults += (
            list_faults(Stage, stage, where) if isinstance(stage, Mapping) else [f"{where}: {stage!r} is not a stage."]
        )
        faults += _find_stage_value_faults(stage, where) if isinstance(stage, Mapping) else []
    return faults


def find_feature_cache_conflict(train: Mapping[str, Any]) -> str | None:
    """Why a stage that trains these parts cannot use features kept on disk (`train.features`); None when it can."""
    if "encoder" not in train:
        return None
    return (
        "it trains the encoder, whose features change with every step; run it apart from the stages before it "
        "(first_stage, last_stage) with cache_features left out."
    )


def _find_stage_value_faults(stage: Mapping[str, Any], where: str) -> list[str]:
    faults = _find_train_faults(stage.get("train"), f"{where}.train") + _length_faults(stage, where)
    faults += [
        f"{where}.{name}={stage[name]!r} must be at least 1."
        for name in ("steps", "global_batch_size", "step_tokens", "pack_tokens", "pack_views", "max_tokens")
        if isinstance(stage.get(name), int) and stage[name] < 1
    ]
    if not stage.get("data"):
        faults.append(f"{where}.data: at least one source is needed.")
    return faults


def _find_train_faults(train: Any, where: str) -> list[str]:
    if not isinstance(train, Mapping):
        return []
    if not train:
        return [f"{where}: nothing is trained; name at least one of {', '.join(TRAINABLE_PARTS)}."]
    faults = [
        f"{where}.{part}: no such part.{format_suggestion(part, TRAINABLE_PARTS)}"
        for part in train
        if part not in TRAINABLE_PARTS
    ]
    if "lora" in train and "backbone" in train:
        faults.append(f"{where}: 'backbone' and 'lora' would both change the backbone; keep one.")
    for part, given in train.items():
        inner = given if isinstance(given, Mapping) else {"lr": given}
        faults += list_faults(Lora if part == "lora" else PartSettings, inner, f"{where}.{part}")
        if is_of_type(float, inner.get("weight_decay")) and inner["weight_decay"] < 0:
            faults.append(f"{where}.{part}.weight_decay={inner['weight_decay']!r} is negative; write 0 or more.")
        if "rate" in inner and not _is_positive(inner["lr"]):
            faults.append(
                f"{where}.{part}={inner['lr']!r}: a learning rate is a number above 0; leave the part out to freeze it."
            )
    return faults


def _length_faults(stage: Mapping[str, Any], where: str) -> list[str]:
    """How long a stage is and how large its steps are: each said once."""
    given = {
        name
        for name in ("steps", "epochs", "global_batch_size", "step_tokens", "pack_tokens")
        if stage.get(name) is not None
    }
    faults = []
    if len(given & {"steps", "epochs"}) != 1:
        faults.append(f"{where}: write either steps or epochs.")
    if len(given & {"global_batch_size", "step_tokens"}) != 1:
        faults.append(f"{where}: write either global_batch_size (samples per step) or step_tokens.")
    if "step_tokens" in given and "pack_tokens" not in given:
        faults.append(f"{where}: step_tokens needs pack_tokens, the tokens of one packed row.")
    return faults


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
