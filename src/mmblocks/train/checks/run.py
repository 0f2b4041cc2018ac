"""Whether a whole recipe can run: its model, stages and data sources, every reason at once, before anything is read."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmblocks.components import backbones, encoders
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.faults import HARMLESS, Fault, join_key
from mmblocks.hub import HubReference
from mmblocks.model import loading
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping.recompose import find_part_faults
from mmblocks.pretrained import find_cached_folder, forbid_fetching
from mmblocks.registry import Registry
from mmblocks.settings import format_suggestion, list_settings, make_unknown_fault
from mmblocks.train.checks.random_parts import find_random_part_faults
from mmblocks.train.checks.stage import find_source_faults, find_stage_faults, find_warmup_fault, to_sequence
from mmblocks.train.reports.tracking import find_tracking_faults
from mmblocks.train.stages import EncoderPretraining, Evaluation, TrainRun, find_feature_cache_conflict, find_run_faults
from mmblocks.train.starting_model import COMPONENTS, adopt_offline

log = logging.getLogger(__name__)

AT_LEAST, ABOVE = "Write {} or more.", "Write a number above {}."
LIMITS: Mapping[str, tuple[type, Mapping[str, tuple[int, str]]]] = {
    "": (
        TrainRun,
        {
            **dict.fromkeys(("budget", "timeout_s", "video_deadline_s"), (0, ABOVE)),
            **dict.fromkeys(("threads", "workers", "visual_ablation_at", "seed"), (0, AT_LEAST)),
            **dict.fromkeys(("save_every", "log_every", "keep"), (1, AT_LEAST)),
        },
    ),
    "encoder_pretraining": (
        EncoderPretraining,
        {
            **dict.fromkeys(("steps", "global_batch_size"), (1, AT_LEAST)),
            **dict.fromkeys(("lr", "max_grad_norm"), (0, ABOVE)),
            "weight_decay": (0, AT_LEAST),
        },
    ),
    "evaluate": (Evaluation, {**dict.fromkeys(("every", "samples"), (1, AT_LEAST)), "tiny": (0, AT_LEAST)}),
}
"""Sections of a run (the first is the run itself), their schema, and the smallest values of their settings."""


def check_run(raw: Mapping[str, Any]) -> list[Fault]:
    """Every fault of a composed recipe, network off: run, model, stages, data sources and what they need of each other."""
    raw = adopt_offline(raw)
    return _find_faults(raw, _dry_build_model(raw))


def require_run(raw: Mapping[str, Any]) -> DryBuild:
    """The dry build of a recipe's model. Raises one `ConfigError` that lists every fault of the composed recipe.

    What a run downloads is no fault, and a warning is logged.
    """
    raw = adopt_offline(raw)
    seen = _dry_build_model(raw)
    faults = _find_faults(raw, seen)
    if errors := [fault for fault in faults if fault.severity not in HARMLESS]:
        raise ConfigError.from_faults(errors, "this run cannot work")
    for fault in faults:
        if fault.severity == "warning":
            log.warning("%s", fault)
    return seen


def _dry_build_model(raw: Mapping[str, Any]) -> DryBuild:
    model = raw.get("model")
    return dry_build(model) if isinstance(model, Mapping) else DryBuild()


def _find_faults(raw: Mapping[str, Any], seen: DryBuild) -> list[Fault]:
    stages = [(i, s) for i, s in enumerate(to_sequence(raw.get("stages"))) if isinstance(s, Mapping)]
    faults = [*find_run_faults(raw), *seen.faults, *_find_value_faults(raw), *_find_weights_faults(raw)]
    faults += _find_stage_order_faults(raw, stages)
    if raw.get("export") is not None and not seen.errors and seen.backbone is not None:
        from mmblocks.model.convert import find_fitting_family

        try:
            find_fitting_family(seen.to_model(ModelSpec.from_dict(raw["model"])))
        except ConfigError as cause:
            cure = "Leave export out, or choose components that transformers has."
            faults.append(Fault("export", str(cause), cure))
    for number, stage in stages:
        key, train = f"stages.{number}", stage.get("train")
        conflict = find_feature_cache_conflict(train) if isinstance(train, Mapping) else None
        if conflict and isinstance(raw.get("cache_features"), str):
            faults.append(Fault("cache_features", f"{key} ({stage.get('name')!r}): {conflict}"))
        faults += find_stage_faults(key, stage, seen, raw.get("model"))
    faults += find_random_part_faults(raw, stages, seen)
    if isinstance(raw.get("evaluate"), Mapping):
        for number, source in enumerate(to_sequence(raw["evaluate"].get("data"))):
            faults += find_source_faults(f"evaluate.data.{number}", source)
        faults += _find_task_faults(to_sequence(raw["evaluate"].get("tasks")))
    if seen.backbone is not None and getattr(seen.backbone, "tokenizer_source", "") is None:
        # Training needs text; a composition alone does not.
        cure = "Name a hub id or a folder, or 'mmblocks:tinyworld_text'."
        faults.append(Fault("model.backbone.text_tokenizer", "the backbone has no text tokenizer.", cure))
    return faults


# The run ------------------------------------------------------------------------------------------------------------


def _find_value_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Values of the right type that are out of bounds or name nothing."""
    valid: dict[str, dict[str, Any]] = {}
    for section, (schema, limits) in LIMITS.items():
        given = raw.get(section) if section else raw
        given = given if isinstance(given, Mapping) else {}
        settings = (setting for setting in list_settings(schema).values() if setting.name in given)
        valid[section] = {s.name: given[s.name] for s in settings if s.find_fault(given[s.name]) is None}
        for name, (least, cure) in limits.items():
            value = valid[section].get(name, least + 1)
            if value != "auto" and (value < least or (value == least and cure is ABOVE)):
                yield Fault(join_key(section, name), f"{name}={value!r} is too small.", cure.format(least))
    run, evaluate = valid[""], valid["evaluate"]
    unknown = [name for name in run.get("from_weights", ()) if name not in COMPONENTS]
    yield from (make_unknown_fault(name, "no such component.", COMPONENTS, "from_weights") for name in unknown)
    if not 0 <= (run.get("ema") or 0) < 1:
        yield Fault("ema", f"ema={run['ema']} is no decay.", "Write a number from 0 to below 1, such as 0.999.")
    yield from find_tracking_faults(run.get("track", ()))
    if isinstance(raw.get("evaluate"), Mapping):
        if not any(evaluate.get(name) for name in ("data", "tasks", "tiny")):
            cure = "Write data: [...], tasks: [...], or tiny: 100 for TinyWorld."
            yield Fault("evaluate", "it names nothing to measure.", cure)
    elif run.get("keep_best"):
        cure = "Write evaluate: {data: [...]}."
        yield Fault("keep_best", "nothing is measured, so no weights are the best.", cure)
    yield from find_warmup_fault("encoder_pretraining", valid["encoder_pretraining"])
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", run.get("device", "auto")):
        yield Fault("device", f"no device is called {run['device']!r}.", "Write auto, cpu, cuda or cuda:1.")
    out, cure = run.get("out", "runs"), "Name a folder, such as runs/mine."
    if not out.strip() or "\0" in out:
        yield Fault("out", f"{out!r} is no folder's name.", cure)
        return
    try:
        if Path(out).is_file():
            yield Fault("out", f"{out} is a file.", cure)
    except OSError as cause:  # a name that is too long, a folder that nobody may look into
        yield Fault("out", f"{out[:80]!r} cannot be a folder ({cause.strerror}).", cure)


def _find_task_faults(listed: Sequence[Any]) -> Iterator[Fault]:
    """What is wrong with the tasks of the evaluation, files that are not there included."""
    if not listed:
        return
    from mmblocks.eval.task_settings import PlannedTask, find_lost_files, find_task_faults  # imports torch

    labels = []
    for number, settings in enumerate(listed):
        key = f"evaluate.tasks.{number}"
        faults = list(find_task_faults(settings, key))
        yield from faults
        if not faults:
            yield from find_lost_files(settings, key)
            label = PlannedTask.from_settings(settings).label
            if label in labels:
                yield Fault(key, f"two tasks are called {label!r}.", "Give them different names with label: NAME.")
            labels.append(label)


def _find_weights_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    weights, model = raw.get("weights", "random"), raw.get("model")
    if not isinstance(weights, str) or weights == "random":
        return
    if weights == "pretrained":
        parts: tuple[tuple[str, Registry[Any]], ...] = (("encoder", encoders), ("backbone", backbones))
        for kind, registry in parts:
            if isinstance(model, Mapping) and model.get(kind) is not None:
                yield from _find_checkpoint_faults(f"model.{kind}", registry, model[kind])
    elif isinstance(model, Mapping):
        yield from _find_start_faults(weights, ModelSpec.from_dict(model))


def _find_start_faults(weights: str, wanted: ModelSpec) -> Iterator[Fault]:
    """Whether the model that a run starts from is there and has the recipe's parts. Uses no network."""
    if not Path(weights).exists():
        repository = HubReference.parse(weights)
        if repository is None:
            cure = "Write random, pretrained, the folder of a model, or org/name of the hub."
            yield Fault("weights", f"there is no model {weights!r}.", cure, "missing")
            return
        cached = find_cached_folder(weights, "config.json")
        if cached is None or not any(file.suffix in (".safetensors", ".bin") for file in cached.rglob("*")):
            message = f"there is no folder {weights} here; the run downloads it from the hub."
            yield Fault("weights", message, repository.download_command, "fetchable")
        if cached is None:
            return
    try:
        with forbid_fetching():
            stored = loading.read_located_spec(loading.locate_model(weights, weights=False))
    except MMBlocksError as cause:
        yield Fault("weights", str(cause))
        return
    yield from (fault.move_below("model") for fault in find_part_faults(stored, wanted))


def _find_checkpoint_faults(key: str, registry: Registry[Any], spec: object) -> Iterator[Fault]:
    """Parts that have no checkpoint to take pretrained weights from."""
    if registry.find_own_faults(spec):
        return
    settings, members = registry.resolve_settings(spec), registry.find_sub_components(spec)
    for inner, member in members.items():
        yield from _find_checkpoint_faults(f"{key}.{inner}", registry, member)
    if members:
        return
    if "checkpoint" not in settings:
        cure = f"Choose another {registry.kind}, or weights=random."
        yield Fault(key, "weights=pretrained, but nobody publishes weights for it.", cure)
    elif settings["checkpoint"] is None:
        cure = "Name a hub id or a folder, or write weights=random."
        yield Fault(f"{key}.checkpoint", "weights=pretrained, but no checkpoint is named.", cure)


def _find_stage_order_faults(
    raw: Mapping[str, Any], stages: Sequence[tuple[int, Mapping[str, Any]]]
) -> Iterator[Fault]:
    """Names of stages that cannot be, and a first or last stage that cannot be run."""
    names = {i: stage["name"] for i, stage in stages if isinstance(stage.get("name"), str)}
    for i, name in names.items():
        if not re.fullmatch(r"[\w.-]+", name):
            yield Fault(
                f"stages.{i}.name", f"{name!r} cannot be a folder's name.", "Use letters, digits, '_', '-' and '.'."
            )
    times = Counter(names.values())
    for name in (name for name, count in times.items() if count > 1):
        last = max(i for i, other in names.items() if other == name)
        yield Fault(f"stages.{last}.name", f"{times[name]} stages are called {name!r}.", "Give each its own name.")
    start, stop = raw.get("first_stage"), raw.get("last_stage")
    for key, name in (("first_stage", start), ("last_stage", stop)):
        if isinstance(name, str) and name not in times:
            yield Fault(key, f"no stage is called {name!r}.", format_suggestion(name, times).strip())
    order = [*names.values()]
    if start in order and stop in order and order.index(start) > order.index(stop):
        yield Fault("last_stage", f"{stop!r} comes before first_stage={start!r}.", "Exchange them.")
