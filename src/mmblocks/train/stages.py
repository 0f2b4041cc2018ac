"""The settings of a training run: a model, and stages that each name the trained parts, the data and the learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.model.spec import PARTS
from mmblocks.registry import Spec
from mmblocks.settings import find_faults, is_of_type, make_unknown_fault

TRAINABLE_PARTS = (*PARTS, "lora")
"""What a stage can train: the parts of a model, and low-rank adapters on its backbone."""


@dataclass(frozen=True, slots=True)
class PartSettings:
    """How a part is trained: its learning rate, and a weight decay where it is not the stage's."""

    lr: float
    weight_decay: float | None = None


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) on every linear layer of the backbone's blocks.

    They are merged into the backbone when the stage is saved. bits: 4 or 8 keeps the frozen weights around them quantized
    during training (QLoRA, https://arxiv.org/abs/2305.14314). The defaults are those of LLaVA's training code.
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
    train: the trained parts (encoder, projector, learned_tokens, backbone, lora), each with a learning rate or the fields of
        `PartSettings` (`Lora` for lora); other parts are frozen.
    steps: optimizer steps at budget 1, samples drawn by weight; or epochs: how often every conversation is read.
    global_batch_size: samples per step; or step_tokens: tokens per step, in rows of `pack_tokens`.
    pack_tokens, pack_views: most tokens and images of one packed row, that is of one forward pass; without
        `pack_tokens` a process packs its samples of a step into one row.
    order: "mixed" as drawn; "length" and "modality_length" group samples of similar length as LLaVA's samplers do.
    max_tokens: longest sample, where it is less than the backbone takes. overlong: "raise" treats a longer one as a record
        that cannot be used (see `TrainRun.broken`), "skip" leaves it out and lists it in broken.jsonl, "cut_answer" cuts
        the end of its last answer, lists it in cut.jsonl, and raises where that is not enough.
    tokenizer: visual tokenizers by scenario that this stage uses instead of the model's own (fewer tiles, fewer frames).
    warmup: share of the steps in which the learning rate rises linearly; schedule: how it falls from there to zero.
    max_grad_norm: largest norm of all gradients together. beta2: AdamW's decay rate of squared gradients.
    precision: what forward and backward compute in; weights and optimizer stay float32. "auto" is bfloat16 on a GPU that has
        units for it, else float32.
    template: chat template of this stage instead of the model's own ("plain" in LLaVA's first stage).
    targets: "answers" trains on the assistant's messages; "original" repeats the masks of LLaVA's training code.
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    template: str | None = None
    targets: Literal["answers", "original"] = "answers"
    visuals: Literal["as_written", "front", "mixed"] = "as_written"
    objective: Spec = "answers"

    @property
    def trained_parts(self) -> dict[str, PartSettings | Lora]:
        """Settings of every part that is trained, lora last; a part without a weight decay has the stage's."""
        parts: dict[str, PartSettings | Lora] = {}
        for name, given in sorted(self.train.items(), key=lambda item: item[0] == "lora"):
            values = given if isinstance(given, Mapping) else {"lr": given}
            settings = Lora(**values) if name == "lora" else PartSettings(**values)
            is_own = settings.weight_decay is not None
            parts[name] = settings if is_own else replace(settings, weight_decay=self.weight_decay)
        return parts

    def with_precision(self, automatic: Literal["float32", "bfloat16"]) -> Stage:
        """The stage with this precision where it leaves the choice to the device."""
        return replace(self, precision=automatic) if self.precision == "auto" else self

    @property
    def lora(self) -> Lora | None:
        """The adapters of this stage, None where it trains none."""
        lora = self.trained_parts.get("lora")
        return lora if isinstance(lora, Lora) else None


@dataclass(frozen=True, slots=True)
class EncoderPretraining:
    """Settings of the pretraining on TinyWorld of an encoder without a checkpoint (see `mmblocks.train.encoder_pretraining`)."""

    steps: int
    global_batch_size: int = 32
    lr: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured during training: the loss on held-out conversations, scores of tasks, and exact answers on TinyWorld.

    every: steps between two measurements; the last step of a stage is always measured. samples: conversations of `data`.
    tasks: benchmarks, or files of one's own with a metric, as `mmblocks eval` has them (see `mmblocks.eval.task_settings`).
    tiny: questions of each of TinyWorld's tasks, 0 for none. The first of loss, tasks and TinyWorld that is measured says
    which weights are the best.
    """

    every: int = 500
    data: Sequence[Mapping[str, Any]] = ()
    samples: int = 100
    tasks: Sequence[Mapping[str, Any]] = ()
    tiny: int = 0


@dataclass(frozen=True, slots=True)
class TrainRun:
    """A whole run, read from a composed recipe.

    weights: "random", "pretrained" (each component's checkpoint) or a model (see `mmblocks.model.loading.locate_model`).
    from_weights: components (encoder, tokenizer.image, ...) that are those of the model in `weights`. Composing a recipe that
        names a system fills it in: every component, or those given here, but none that recipe or command line choose otherwise.
    budget: factor on every stage's steps or epochs. out: folder of the run, for checkpoints, metrics.jsonl and the final model.
    threads: CPU threads of torch, 0 for its own choice. workers: processes that prefetch batches;
        "auto" takes none beside a CPU, and beside a GPU as many as the machine has cores for, up to 8.
    encoder_pretraining: settings of `EncoderPretraining`, for an encoder without a checkpoint; it comes before the first stage.
    first_stage, last_stage: names of the first and last stage to run, for part of a curriculum.
    save_every: steps between two saved states to resume from, of which the last `keep` stay; keep_best also keeps the weights
        that measured best (see `Evaluation`).
    broken: "raise" stops at a record that cannot be read, "skip" leaves it out and lists it in broken.jsonl.
    video_deadline_s: seconds after which reading a video is given up and the video counts as broken.
    gradient_checkpointing: recompute the activations of every block in backward instead of keeping them.
    accumulate: how a sharded model adds up the gradients of several rows: "local" reduces their sum once over processes,
        which takes memory for whole gradients; "sharded" reduces each row's and keeps this process' share.
    compile: compile the encoder's and the backbone's blocks with torch.compile.
    ema: decay of a moving average of the trained weights, which is then what is saved.
    cache_features: folder in which the features of a frozen encoder are kept, for stages that read images more than once.
    track: "tensorboard" and "wandb", beside metrics.jsonl. visual_ablation_at: step of each stage at which the loss with shuffled
        and blank visuals is compared with the true one, 0 for never. export: "transformers" also writes the last model so.
    timeout_s: seconds that a process waits for the others before it gives up.
    resume_changed_data: resume although records or media of the stage have changed since the run stopped; the first change
        is logged.
    """

    model: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]
    out: str
    weights: str = "random"
    from_weights: Sequence[str] = ()
    seed: int = 0
    budget: float = 1.0
    device: str = "auto"
    threads: int = 0
    workers: int | Literal["auto"] = "auto"
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

    @property
    def num_workers(self) -> int:
        """`workers`, which `resolve_automatic` has chosen where a recipe leaves it open; none before that."""
        return 0 if self.workers == "auto" else self.workers


@dataclass(frozen=True, slots=True)
class Curriculum:
    """A validated run: its settings and stages, the encoder's pretraining before them, and the evaluation during training."""

    run: TrainRun
    stages: tuple[Stage, ...]
    encoder_pretraining: EncoderPretraining | None = None
    evaluate: Evaluation | None = None


def read_run(raw: Mapping[str, Any]) -> Curriculum:
    """A composed recipe as a curriculum. Raises `ConfigError` that lists every fault with its key."""
    if faults := list(find_run_faults(raw)):
        raise ConfigError.from_faults(faults)
    return read_checked_run(raw)


def read_checked_run(raw: Mapping[str, Any]) -> Curriculum:
    """As `read_run`, for a recipe in which `find_run_faults` finds nothing."""
    run = TrainRun(**raw)
    return Curriculum(
        run,
        tuple(Stage(**stage) for stage in run.stages),
        None if run.encoder_pretraining is None else EncoderPretraining(**run.encoder_pretraining),
        None if run.evaluate is None else Evaluation(**run.evaluate),
    )


def find_run_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Every fault of a run's plain values apart from its model and its sources."""
    yield from find_faults(TrainRun, raw)
    for name, schema in (("encoder_pretraining", EncoderPretraining), ("evaluate", Evaluation)):
        if isinstance(raw.get(name), Mapping):
            yield from find_faults(schema, raw[name], name)
    stages = raw.get("stages", [])
    if not isinstance(stages, Sequence) or not stages:
        yield Fault("stages", "at least one stage is needed.")
        return
    for i, stage in enumerate(stages):
        if isinstance(stage, Mapping):
            yield from find_faults(Stage, stage, f"stages.{i}")
            yield from _find_stage_value_faults(stage, f"stages.{i}")
        else:
            yield Fault(f"stages.{i}", f"{stage!r} is not a stage.", "Write a mapping with a name, data and train.")


def find_feature_cache_conflict(train: Mapping[str, Any]) -> str | None:
    """Why a stage that trains these parts cannot use features kept on disk (`train.features`); None when it can."""
    if "encoder" not in train:
        return None
    return (
        "it trains the encoder, whose features change with every step; run it apart from the stages before it "
        "(first_stage, last_stage) with cache_features left out."
    )


def _find_stage_value_faults(stage: Mapping[str, Any], key: str) -> Iterator[Fault]:
    yield from _find_train_faults(stage.get("train"), f"{key}.train")
    counts = ("steps", "epochs", "global_batch_size", "step_tokens", "pack_tokens")
    given = {name for name in counts if stage.get(name) is not None}
    if len(given & {"steps", "epochs"}) != 1:
        yield Fault(key, "write either steps or epochs.")
    if len(given & {"global_batch_size", "step_tokens"}) != 1:
        yield Fault(key, "write either global_batch_size (samples per step) or step_tokens.")
    if "step_tokens" in given and "pack_tokens" not in given:
        yield Fault(key, "step_tokens needs pack_tokens, the tokens of one packed row.")
    for name in ("steps", "global_batch_size", "step_tokens", "pack_tokens", "pack_views", "max_tokens"):
        if isinstance(stage.get(name), int) and stage[name] < 1:
            yield Fault(f"{key}.{name}", f"{name}={stage[name]!r} must be at least 1.")
    if not stage.get("data"):
        yield Fault(f"{key}.data", "at least one source is needed.")


def _find_train_faults(train: object, key: str) -> Iterator[Fault]:
    if not isinstance(train, Mapping):
        return
    if not train:
        yield Fault(key, f"nothing is trained; name at least one of {', '.join(TRAINABLE_PARTS)}.")
    if "lora" in train and "backbone" in train:
        yield Fault(key, "'backbone' and 'lora' would both change the backbone; keep one.")
    for part, given in train.items():
        where, inner = f"{key}.{part}", given if isinstance(given, Mapping) else {"lr": given}
        if part not in TRAINABLE_PARTS:
            yield make_unknown_fault(part, "no such part.", TRAINABLE_PARTS, key)
            continue
        yield from find_faults(Lora if part == "lora" else PartSettings, inner, where)
        if is_of_type(float, inner.get("weight_decay")) and inner["weight_decay"] < 0:
            message = f"weight_decay={inner['weight_decay']!r} is negative."
            yield Fault(f"{where}.weight_decay", message, "Write 0 or more.")
        if is_of_type(float, inner.get("lr")) and inner["lr"] <= 0:
            message = f"lr={inner['lr']!r}: a learning rate is a number above 0; leave the part out to freeze it."
            yield Fault(where if inner is not given else f"{where}.lr", message)
