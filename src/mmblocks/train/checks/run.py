"""Whether a whole recipe can run: its model, stages and data sources, every reason at once, before anything is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmblocks.components import backbones, encoders
from mmblocks.data.media.files import is_existing_path
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.model.checkpoint import read_spec
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.checks.faults import Fault, MissingFault, find_component_faults, resolve_settings
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping.recompose import reasons_against
from mmblocks.registry import Registry
from mmblocks.settings import format_suggestion, list_settings
from mmblocks.train.checks.stage import find_source_faults, find_stage_faults, find_warmup_fault, to_sequence
from mmblocks.train.reports.tracking import find_tracking_faults
from mmblocks.train.stages import EncoderPretraining, Evaluation, TrainRun, find_feature_cache_conflict, find_run_faults

MINIMUM = {
    "budget": (0, False),
    "threads": (0, True),
    "workers": (0, True),
    "save_every": (1, True),
    "log_every": (1, True),
    "keep": (1, True),
    "visual_ablation_at": (0, True),
    "seed": (0, True),
    "timeout_s": (0, False),
    "video_deadline_s": (0, False),
}
"""Least value of a run's settings, and whether that value itself is allowed."""
PRETRAINING_MINIMUM = {
    "steps": (1, True),
    "global_batch_size": (1, True),
    "lr": (0, False),
    "weight_decay": (0, True),
    "max_grad_norm": (0, False),
}
EVALUATION_MINIMUM = {"every": (1, True), "samples": (1, True), "tiny": (0, True)}
"""The same for what is measured while training."""


def check_run(raw: Mapping[str, Any]) -> list[Fault]:
    """Every fault of a composed recipe, network off: run, model, stages, data sources and what they need of each other."""
    return _find_faults(raw, _dry_build_model(raw))


def require_run(raw: Mapping[str, Any]) -> DryBuild:
    """The dry build of a recipe's model. Raises one `ConfigError` that lists every fault of the composed recipe."""
    seen = _dry_build_model(raw)
    if found := _find_faults(raw, seen):
        raise ConfigError("this run cannot work:\n" + "\n".join(f"  - {fault}" for fault in found))
    return seen


def _dry_build_model(raw: Mapping[str, Any]) -> DryBuild:
    model = raw.get("model")
    return dry_build(model) if isinstance(model, Mapping) else DryBuild()


def _find_faults(raw: Mapping[str, Any], seen: DryBuild) -> list[Fault]:
    stages = [(i, s) for i, s in enumerate(to_sequence(raw.get("stages"))) if isinstance(s, Mapping)]
    found = [
        *map(_to_fault, find_run_faults(raw)),
        *seen.faults,
        *_find_value_faults(raw),
        *_find_weights_faults(raw),
        *_find_name_faults(raw, stages),
    ]
    found += [*_cache(raw, stages), *_find_export_faults(raw, seen)]
    for number, stage in stages:
        found += find_stage_faults(f"stages.{number}", stage, seen, raw.get("model"))
    for number, source in enumerate(_measured(raw)):
        found += find_source_faults(f"evaluate.data.{number}", source)
    return [*found, *_text_tokenizer(seen)]


def _measured(raw: Mapping[str, Any]) -> Sequence[Any]:
    """The sources that a run is measured on."""
    evaluate = raw.get("evaluate")
    return to_sequence(evaluate.get("data")) if isinstance(evaluate, Mapping) else ()


def _to_fault(text: str) -> Fault:
    """A fault of `run_faults`, written "key: what" or "key what" or "where: name=value what"."""
    named = re.match(r"(run|stages\.\d+): (\w+)=", text)
    key = f"{named[1]}.{named[2]}" if named else re.match(r"[\w.]*\w", text)[0]  # type: ignore[index]
    return Fault(key.removeprefix("run."), text.removeprefix(key).removeprefix(":").strip().removeprefix("run: "))


# The run ------------------------------------------------------------------------------------------------------------


def _find_value_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    typed = _select_valid_values(TrainRun, raw)
    yield from _find_too_small("", typed, MINIMUM)
    if not 0 <= (typed.get("ema") or 0) < 1:
        yield Fault("ema", f"ema={typed['ema']} is no decay.", "Write a number from 0 to below 1, such as 0.999.")
    yield from (Fault("track", text.removeprefix("track: ")) for text in find_tracking_faults(typed.get("track", ())))
    yield from _find_evaluation_faults(raw.get("evaluate"), typed.get("keep_best", False))
    if isinstance(raw.get("encoder_pretraining"), Mapping):
        yield from _find_too_small(
            "encoder_pretraining.",
            _select_valid_values(EncoderPretraining, raw["encoder_pretraining"]),
            PRETRAINING_MINIMUM,
        )
        yield from find_warmup_fault("encoder_pretraining", raw["encoder_pretraining"])
    device = typed.get("device", "auto")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        yield Fault("device", f"no device is called {device!r}.", "Write auto, cpu, cuda or cuda:1.")
    if "out" in typed:
        yield from _folder(typed["out"])


def _folder(out: str) -> Iterator[Fault]:
    """Where a run cannot write."""
    cure = "Name a folder, such as runs/mine."
    if not out.strip() or "\0" in out:
        yield Fault("out", f"{out!r} is no folder's name.", cure)
        return
    try:
        if Path(out).is_file():
            yield Fault("out", f"{out} is a file.", "Name a folder.")
    except OSError as cause:  # a name that is too long, a folder that nobody may look into
        yield Fault("out", f"{out[:80]!r} cannot be a folder ({cause.strerror}).", cure)


def _select_valid_values(schema: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the right type."""
    return {
        s.name: raw[s.name]
        for s in list_settings(schema).values()
        if s.name in raw and not s.reasons_against(raw[s.name])
    }


def _find_too_small(where: str, typed: Mapping[str, Any], limits: Mapping[str, tuple[int, bool]]) -> Iterator[Fault]:
    for name, (least, allowed) in limits.items():
        value = typed.get(name, least + 1)
        if value < least or (value == least and not allowed):
            cure = f"Write {least} or more." if allowed else f"Write a number above {least}."
            yield Fault(f"{where}{name}", f"{name}={value!r} is too small.", cure)


def _find_evaluation_faults(evaluate: Any, keep_best: bool) -> Iterator[Fault]:
    if not isinstance(evaluate, Mapping):
        if keep_best:
            yield Fault(
                "keep_best", "nothing is measured, so no weights are the best.", "Write evaluate: {data: [...]}."
            )
        return
    typed = _select_valid_values(Evaluation, evaluate)
    yield from _find_too_small("evaluate.", typed, EVALUATION_MINIMUM)
    if not typed.get("data") and not typed.get("tiny"):
        yield Fault("evaluate", "it names nothing to measure.", "Write data: [...], or tiny: 100 for TinyWorld.")


def _find_export_faults(raw: Mapping[str, Any], seen: DryBuild) -> Iterator[Fault]:
    """An export that the composition cannot have, while nothing has been trained for it."""
    if raw.get("export") is None or seen.faults or seen.backbone is None:
        return
    from mmblocks.model.convert import find_fitting_family

    try:
        find_fitting_family(seen.to_model(ModelSpec.from_dict(raw["model"])))
    except ConfigError as cause:
        yield Fault("export", str(cause), "Leave export out, or choose components that transformers has.")


def _find_weights_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    weights = raw.get("weights", "random")
    if not isinstance(weights, str) or weights == "random":
        return
    if weights == "pretrained":
        yield from _checkpoints(raw.get("model"))
    elif not is_existing_path(Path(weights) / "config.json"):
        cure = "Write random, pretrained, or a folder written by `mmblocks train`."
        kind = Fault if Path(weights).exists() else MissingFault
        yield kind("weights", f"{weights!r} is not a model saved by mmblocks.", cure)
    else:
        yield from _other_parts(weights, raw.get("model"))


def _other_parts(weights: str, model: Any) -> Iterator[Fault]:
    """Parts of a saved model that are not the recipe's."""
    try:
        reasons = reasons_against(read_spec(Path(weights)), ModelSpec.from_dict(model))
    except MMBlocksError as cause:
        yield Fault("weights", str(cause))
        return
    cure = "Exchange parts with `mmblocks swap` first, or write the recipe's model as the saved one is."
    yield from (Fault(f"model.{reason.partition(':')[0]}", reason.partition(": ")[2] + ".", cure) for reason in reasons)


def _checkpoints(model: Any) -> Iterator[Fault]:
    """Parts that have no checkpoint to take pretrained weights from."""
    kinds: tuple[tuple[str, Registry[Any]], ...] = (("encoder", encoders), ("backbone", backbones))
    for kind, registry in kinds:
        spec = model.get(kind) if isinstance(model, Mapping) else None
        if spec is not None:
            yield from _find_checkpoint_faults(f"model.{kind}", registry, spec)


def _find_checkpoint_faults(key: str, registry: Registry[Any], spec: Any) -> Iterator[Fault]:
    if find_component_faults(key, registry, spec):
        return
    settings, members = resolve_settings(registry, spec), registry.find_sub_components(spec)
    for inner, member in members.items():
        yield from _find_checkpoint_faults(f"{key}.{inner}", registry, member)
    if members:
        return
    if "checkpoint" not in settings:
        cure = f"Choose another {registry.kind}, or weights=random."
        yield Fault(key, "weights=pretrained was asked for, but nobody publishes weights for it.", cure)
    elif settings["checkpoint"] is None:
        cure = "Name a hub id or a folder, or write weights=random."
        yield Fault(f"{key}.checkpoint", "weights=pretrained was asked for, but no checkpoint is named.", cure)


def _find_name_faults(raw: Mapping[str, Any], stages: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Fault]:
    names = [(i, stage["name"]) for i, stage in stages if isinstance(stage.get("name"), str)]
    often = Counter(name for _, name in names)
    for i, name in names:
        if not re.fullmatch(r"[\w.-]+", name):
            yield Fault(
                f"stages.{i}.name", f"{name!r} cannot be a folder's name.", "Use letters, digits, '_', '-' and '.'."
            )
    for name in [name for name, times in often.items() if times > 1]:
        last = max(i for i, other in names if other == name)
        yield Fault(f"stages.{last}.name", f"{often[name]} stages are called {name!r}.", "Give each its own name.")
    start, stop = raw.get("first_stage"), raw.get("last_stage")
    for key, name in (("first_stage", start), ("last_stage", stop)):
        if isinstance(name, str) and name not in often:
            yield Fault(key, f"no stage is called {name!r}.", format_suggestion(name, often).strip())
    order = [name for _, name in names]
    if start in order and stop in order and order.index(start) > order.index(stop):
        yield Fault("last_stage", f"{stop!r} comes before first_stage={start!r}.", "Exchange them.")


def _cache(raw: Mapping[str, Any], stages: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Fault]:
    """Stages that would keep features of an encoder that learns."""
    if not isinstance(raw.get("cache_features"), str):
        return
    for i, stage in stages:
        if isinstance(stage.get("train"), Mapping) and (reason := find_feature_cache_conflict(stage["train"])):
            yield Fault("cache_features", f"stages.{i} ({stage.get('name')!r}): {reason}")


def _text_tokenizer(seen: DryBuild) -> Iterator[Fault]:
    """Training needs text; a composition alone does not."""
    if seen.backbone is not None and getattr(seen.backbone, "tokenizer_source", "") is None:
        key = "model.backbone.text_tokenizer"
        yield Fault(
            key, "the backbone has no text tokenizer.", "Name a hub id or a folder, or 'mmblocks:tinyworld_text'."
        )
