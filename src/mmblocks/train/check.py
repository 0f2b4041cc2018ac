"""Whether a whole recipe can run: its model, stages and data sources, every reason at once, before anything is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmblocks.components import backbones, encoders, templates
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError, DataError, MMBlocksError
from mmblocks.model.check import Examination, examine
from mmblocks.model.faults import Fault, component_faults, resolved
from mmblocks.model.limits import local_tokenizer, template_faults
from mmblocks.model.spec import PARTS
from mmblocks.registry import Registry
from mmblocks.settings import accepts, did_you_mean, fields_of
from mmblocks.templates.later import Later
from mmblocks.train.stages import TrainRun, run_faults

LEAST = {
    "budget": (0, False),
    "threads": (0, True),
    "workers": (0, True),
    "save_every": (1, True),
    "log_every": (1, True),
}
"""Least value of a run's settings, and whether that value itself is allowed."""


def check_run(raw: Mapping[str, Any]) -> list[Fault]:
    """Every fault of a composed recipe, network off: run, model, stages, data sources and what they need of each other."""
    model = raw.get("model")
    seen = examine(model) if isinstance(model, Mapping) else Examination()
    stages = [(i, s) for i, s in enumerate(_list(raw.get("stages"))) if isinstance(s, Mapping)]
    found = [*map(_as_fault, run_faults(raw)), *seen.faults, *_run_values(raw), *_weights(raw), *_names(raw, stages)]
    for number, stage in stages:
        found += _stage(f"stages.{number}", stage, seen)
    return [*found, *_text_tokenizer(seen)]


def require_run(raw: Mapping[str, Any]) -> None:
    """Raise one `ConfigError` that lists every fault of a composed recipe."""
    if found := check_run(raw):
        raise ConfigError("this run cannot work:\n" + "\n".join(f"  - {fault}" for fault in found))


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _as_fault(text: str) -> Fault:
    """A fault of `run_faults`, written "key: what" or "key what" or "where: name=value what"."""
    named = re.match(r"(run|stages\.\d+): (\w+)=", text)
    key = f"{named[1]}.{named[2]}" if named else re.match(r"[\w.]*\w", text)[0]  # type: ignore[index]
    return Fault(key.removeprefix("run."), text.removeprefix(key).removeprefix(":").strip().removeprefix("run: "))


# The run ------------------------------------------------------------------------------------------------------------


def _run_values(raw: Mapping[str, Any]) -> Iterator[Fault]:
    typed = {
        s.name: raw[s.name]
        for s in fields_of(TrainRun).values()
        if s.name in raw and not s.reasons_against(raw[s.name])
    }
    for name, (least, allowed) in LEAST.items():
        value = typed.get(name, least + 1)
        if value < least or (value == least and not allowed):
            yield Fault(
                name,
                f"{name}={value!r} is too small.",
                f"Write {least} or more." if allowed else f"Write a number above {least}.",
            )
    device = typed.get("device", "auto")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        yield Fault("device", f"no device is called {device!r}.", "Write auto, cpu, cuda or cuda:1.")
    if "out" in typed and Path(typed["out"]).is_file():
        yield Fault("out", f"{typed['out']} is a file.", "Name a folder.")


def _weights(raw: Mapping[str, Any]) -> Iterator[Fault]:
    weights = raw.get("weights", "random")
    if not isinstance(weights, str) or weights == "random":
        return
    if weights == "pretrained":
        yield from _checkpoints(raw.get("model"))
    elif not (Path(weights) / "config.json").is_file():
        cure = "Write random, pretrained, or a folder written by `mmblocks train`."
        yield Fault("weights", f"{weights!r} is not a model saved by mmblocks.", cure)


def _checkpoints(model: Any) -> Iterator[Fault]:
    """Parts that have no checkpoint to take pretrained weights from."""
    kinds: tuple[tuple[str, Registry[Any]], ...] = (("encoder", encoders), ("backbone", backbones))
    for kind, registry in kinds:
        spec = model.get(kind) if isinstance(model, Mapping) else None
        if spec is not None:
            yield from _checkpoint_of(f"model.{kind}", registry, spec)


def _checkpoint_of(key: str, registry: Registry[Any], spec: Any) -> Iterator[Fault]:
    if component_faults(key, registry, spec):
        return
    settings, members = resolved(registry, spec), registry.members(spec)
    for inner, member in members.items():
        yield from _checkpoint_of(f"{key}.{inner}", registry, member)
    if members:
        return
    if "checkpoint" not in settings:
        cure = f"Choose another {registry.kind}, or weights=random."
        yield Fault(key, "weights=pretrained was asked for, but nobody publishes weights for it.", cure)
    elif settings["checkpoint"] is None:
        cure = "Name a hub id or a folder, or write weights=random."
        yield Fault(f"{key}.checkpoint", "weights=pretrained was asked for, but no checkpoint is named.", cure)


def _names(raw: Mapping[str, Any], stages: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Fault]:
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
    stop = raw.get("stop_after")
    if isinstance(stop, str) and stop not in often:
        yield Fault("stop_after", f"no stage is called {stop!r}.", did_you_mean(stop, often).strip())


def _text_tokenizer(seen: Examination) -> Iterator[Fault]:
    """Training needs text; a composition alone does not."""
    if seen.backbone is not None and getattr(seen.backbone, "tokenizer_source", "") is None:
        key = "model.backbone.text_tokenizer"
        yield Fault(
            key, "the backbone has no text tokenizer.", "Name a hub id or a folder, or 'mmblocks:tinyworld_text'."
        )


# Stages -------------------------------------------------------------------------------------------------------------


def _stage(key: str, stage: Mapping[str, Any], seen: Examination) -> Iterator[Fault]:
    yield from _stage_values(key, stage)
    yield from _learnable(key, stage.get("train"), seen)
    template = stage.get("template")
    if isinstance(template, str):
        yield from component_faults(f"{key}.template", templates, template) or _template(
            f"{key}.template", template, seen
        )
    yield from _original(key, stage, seen)
    for number, source in enumerate(_list(stage.get("data"))):
        yield from _source(f"{key}.data.{number}", source)


def _stage_values(key: str, stage: Mapping[str, Any]) -> Iterator[Fault]:
    numbers = {n: stage[n] for n in ("warmup", "weight_decay", "clip") if accepts(float, stage.get(n))}
    if not 0 <= numbers.get("warmup", 0) <= 1:
        yield Fault(
            f"{key}.warmup", f"warmup={numbers['warmup']} is not a share of the steps.", "Write a number from 0 to 1."
        )
    if numbers.get("weight_decay", 0) < 0:
        yield Fault(f"{key}.weight_decay", f"weight_decay={numbers['weight_decay']} is negative.", "Write 0 or more.")
    if numbers.get("clip", 1) <= 0:
        yield Fault(f"{key}.clip", f"clip={numbers['clip']} would stop every step.", "Write a norm above 0.")


def _learnable(key: str, train: Any, seen: Examination) -> Iterator[Fault]:
    """A stage whose parts hold no weight at all."""
    parts = [p for p in train if p in PARTS] if isinstance(train, Mapping) else []
    sizes = [seen.parameters(part) for part in parts]
    if parts and not any(sizes) and None not in sizes:
        cure = f"Name one of {', '.join(p for p in PARTS if seen.parameters(p))}."
        yield Fault(f"{key}.train", f"{', '.join(parts)} of this model has no weights to learn.", cure)


def _original(key: str, stage: Mapping[str, Any], seen: Examination) -> Iterator[Fault]:
    if stage.get("targets") != "original":
        return
    try:
        template = _own_template(stage["template"], seen) if stage.get("template") else seen.template
    except MMBlocksError:
        return
    from mmblocks.data.original_masks import original_spans

    try:
        original_spans(template, [], _NoIds()) if template is not None else None
    except ConfigError as cause:
        yield Fault(f"{key}.targets", str(cause))


def _own_template(name: str, seen: Examination) -> Any:
    return templates.build(name, text_tokenizer=Later.of(seen.backbone))


def _template(key: str, name: str, seen: Examination) -> Iterator[Fault]:
    """What the backbone's text tokenizer lacks for a stage's own template."""
    unread = any(fault.key == "model.backbone.text_tokenizer" for fault in seen.faults)
    if seen.backbone is not None and local_tokenizer(seen.backbone) is not None and not unread:
        yield from template_faults(key, _own_template(name, seen), seen.backbone.text_tokenizer)


class _NoIds:
    """A text tokenizer that knows no word: masks are asked for, not made."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": []}


def _source(key: str, source: Any) -> Iterator[Fault]:
    if not isinstance(source, Mapping):
        yield Fault(key, f"{source!r} is not a source.", f"Write name: one of {', '.join(sources)}, and its settings.")
        return
    weight = source.get("weight", 1)
    if not accepts(float, weight) or weight <= 0:
        yield Fault(f"{key}.weight", f"weight={weight!r} is no share of the samples.", "Write a number above 0.")
    spec = {k: v for k, v in source.items() if k != "weight"}
    wrong = component_faults(key, sources, spec)
    yield from wrong or _readable(key, spec)


def _readable(key: str, spec: Mapping[str, Any]) -> Iterator[Fault]:
    """Files and folders that a source names must be there; a source that names none is made, which costs nothing."""
    settings = resolved(sources, spec)
    paths = {k: v for k, v in settings.items() if k.endswith(("path", "file", "folder")) and isinstance(v, str)}
    for name, path in paths.items():
        if not Path(path).exists():
            yield Fault(f"{key}.{name}", f"{path} does not exist.", "Write the path of your data.")
    if paths:
        return
    try:
        sources.build(spec)
    except (ConfigError, DataError) as cause:
        yield Fault(key, str(cause))
