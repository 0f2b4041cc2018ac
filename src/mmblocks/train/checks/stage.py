"""Whether a stage can run: its values, what it trains, its template, objective and data, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from mmblocks.components import templates
from mmblocks.conversation import Item, PreferencePair
from mmblocks.data.mixing.entries import find_use_faults, split_entry
from mmblocks.data.records.patterns import list_unmatched
from mmblocks.data.sources import CheckableSource, FetchedSource, sources
from mmblocks.errors import ConfigError, DataError, MMBlocksError
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.checks.faults import Fault, MissingFault, find_component_faults, resolve_settings
from mmblocks.model.checks.limits import find_local_tokenizer, find_template_faults
from mmblocks.model.spec import PARTS
from mmblocks.registry import split_spec
from mmblocks.settings import is_of_type
from mmblocks.shapes import SCENARIOS
from mmblocks.templates.lazy_tokenizer import LazyTextTokenizer
from mmblocks.train.objectives import item_mismatch, objectives

PATH_SUFFIXES = ("path", "file", "folder", "images", "videos")
"""What the settings of a source that name files and folders end in."""


def to_sequence(value: Any) -> Sequence[Any]:
    """A value that ought to be a list; empty where it is none, which others report."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def find_stage_faults(key: str, stage: Mapping[str, Any], seen: DryBuild, model: Any) -> Iterator[Fault]:
    """Every fault of a stage of a run whose model was examined; keys begin with `key`."""
    yield from _find_value_faults(key, stage)
    yield from _learnable(key, stage.get("train"), seen)
    yield from _find_adapter_faults(f"{key}.train.lora", stage.get("train"))
    yield from _find_tokenizer_faults(f"{key}.tokenizer", stage.get("tokenizer"), seen, model)
    template = stage.get("template")
    if isinstance(template, str):
        yield from find_component_faults(f"{key}.template", templates, template) or _template(
            f"{key}.template", template, seen
        )
    yield from _find_original_target_faults(key, stage, seen)
    yield from _find_objective_faults(key, stage)
    for number, source in enumerate(to_sequence(stage.get("data"))):
        yield from find_source_faults(f"{key}.data.{number}", source)


def _find_value_faults(key: str, stage: Mapping[str, Any]) -> Iterator[Fault]:
    numbers = {n: stage[n] for n in ("weight_decay", "max_grad_norm") if is_of_type(float, stage.get(n))}
    if is_of_type(float, stage.get("epochs")) and stage["epochs"] <= 0:
        yield Fault(f"{key}.epochs", f"epochs={stage['epochs']} reads nothing.", "Write a number above 0.")
    if stage.get("order", "mixed") != "mixed" and stage.get("global_batch_size") is None:
        cure = "Write global_batch_size, or order: mixed."
        yield Fault(f"{key}.order", "samples of like length are put together batch by batch.", cure)
    if is_of_type(float, stage.get("beta2")) and not 0 <= stage["beta2"] < 1:
        cure = "Write a number from 0 to below 1, such as 0.999."
        yield Fault(f"{key}.beta2", f"beta2={stage['beta2']} is no share of what was before.", cure)
    yield from find_warmup_fault(key, stage)
    if numbers.get("weight_decay", 0) < 0:
        yield Fault(f"{key}.weight_decay", f"weight_decay={numbers['weight_decay']} is negative.", "Write 0 or more.")
    if stage.get("overlong") == "cut_answer" and stage.get("targets") == "original":
        cure = "Write targets: answers, or overlong: skip."
        yield Fault(f"{key}.overlong", "targets=original learns more than answers, so their ends cannot be told.", cure)
    if numbers.get("max_grad_norm", 1) <= 0:
        yield Fault(
            f"{key}.max_grad_norm", f"max_grad_norm={numbers['clip']} would stop every step.", "Write a norm above 0."
        )


def find_warmup_fault(key: str, given: Mapping[str, Any]) -> Iterator[Fault]:
    """A warmup that is no share of the steps."""
    warmup = given.get("warmup", 0)
    if is_of_type(float, warmup) and not 0 <= warmup <= 1:
        yield Fault(f"{key}.warmup", f"warmup={warmup} is not a share of the steps.", "Write a number from 0 to 1.")


def _find_adapter_faults(key: str, train: Any) -> Iterator[Fault]:
    """Values that no adapter can have, and packages that adapters need."""
    lora = train.get("lora") if isinstance(train, Mapping) else None
    if lora is None:
        return
    given = lora if isinstance(lora, Mapping) else {}
    if is_of_type(int, given.get("rank")) and given["rank"] < 1:
        yield Fault(f"{key}.rank", f"rank={given['rank']} holds nothing.", "Write 1 or more.")
    if is_of_type(float, given.get("dropout")) and not 0 <= given["dropout"] < 1:
        yield Fault(f"{key}.dropout", f"dropout={given['dropout']} is no share.", "Write a number from 0 to below 1.")
    packages = {"peft": "train"} | ({"bitsandbytes": "quant"} if given.get("bits") else {})
    for package, extra in packages.items():
        if find_spec(package) is None:
            yield MissingFault(
                key, f"adapters need {package}, which is not installed.", f"pip install 'mmblocks[{extra}]'"
            )


def _find_tokenizer_faults(key: str, tokenizer: Any, seen: DryBuild, model: Any) -> Iterator[Fault]:
    """Visual tokenizers of the stage's own that do not fit the model, or insert rows that it has not learned."""
    if not isinstance(tokenizer, Mapping) or not tokenizer or not isinstance(model, Mapping):
        return
    if unknown := [scenario for scenario in tokenizer if scenario not in SCENARIOS]:
        yield Fault(f"{key}.{unknown[0]}", "no such scenario.", f"Write one of {', '.join(SCENARIOS)}.")
        return
    changed = seen.with_tokenizers(tokenizer)
    begin = "model.tokenizer."
    new = [fault for fault in changed.faults if fault.key.startswith(begin) and fault not in seen.faults]
    yield from (replace(fault, key=f"{key}.{fault.key.removeprefix(begin)}") for fault in new)
    if changed.faults or seen.faults:
        return
    if strange := set(changed.router.learned_tokens) - set(seen.router.learned_tokens):
        yield Fault(
            key,
            f"it inserts the marks {', '.join(sorted(strange))}, which the model's own tokenizers do not have.",
            "Let one of the model's scenarios use a tokenizer with these marks.",
        )


def _learnable(key: str, train: Any, seen: DryBuild) -> Iterator[Fault]:
    """A stage whose parts hold no weight at all."""
    parts = [p for p in train if p in PARTS] if isinstance(train, Mapping) else []
    sizes = [seen.count_parameters(part) for part in parts]
    if parts and not any(sizes) and None not in sizes:
        cure = f"Name one of {', '.join(p for p in PARTS if seen.count_parameters(p))}."
        yield Fault(f"{key}.train", f"{', '.join(parts)} of this model has no weights to learn.", cure)


def _find_original_target_faults(key: str, stage: Mapping[str, Any], seen: DryBuild) -> Iterator[Fault]:
    if stage.get("targets") != "original":
        return
    try:
        template = _build_template(stage["template"], seen) if stage.get("template") else seen.template
    except MMBlocksError:
        return
    from mmblocks.data.sample.original_masks import make_original_spans

    try:
        make_original_spans(template, [], _EmptyTokenizer()) if template is not None else None
    except ConfigError as cause:
        yield Fault(f"{key}.targets", str(cause))


def _build_template(name: str, seen: DryBuild) -> Any:
    return templates.build(name, text_tokenizer=LazyTextTokenizer.from_backbone(seen.backbone))


def _template(key: str, name: str, seen: DryBuild) -> Iterator[Fault]:
    """What the backbone's text tokenizer lacks for a stage's own template."""
    unread = any(fault.key == "model.backbone.text_tokenizer" for fault in seen.faults)
    if seen.backbone is not None and find_local_tokenizer(seen.backbone) is not None and not unread:
        yield from find_template_faults(key, _build_template(name, seen), seen.backbone.text_tokenizer)


def _find_objective_faults(key: str, stage: Mapping[str, Any]) -> Iterator[Fault]:
    """An objective that does not exist or cannot be set so, and made-up sources that do not hold what it compares."""
    spec = stage.get("objective", "answers")
    if faults := list(find_component_faults(f"{key}.objective", objectives, spec)):
        yield from faults
        return
    try:
        objective = objectives.build(spec)
    except ConfigError as cause:
        yield Fault(f"{key}.objective", str(cause))
        return
    for number, source in enumerate(to_sequence(stage.get("data"))):
        if (held := _make_first_item(source)) is not None and isinstance(held, PreferencePair) is not objective.pairs:
            yield Fault(f"{key}.data.{number}", item_mismatch(objective))


def _make_first_item(source: Any) -> Item | None:
    """The first item of a source that is made, which costs nothing; None for one that is read, or at fault."""
    if not isinstance(source, Mapping) or any(find_use_faults(source)):
        return None
    spec, _ = split_entry(source)
    if find_component_faults("", sources, spec) or _is_read(spec, resolve_settings(sources, spec)):
        return None
    try:
        built = sources.build(spec)
        return built[0] if len(built) else None
    except (ConfigError, DataError):
        return None


def _is_read(spec: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a source names files or folders, or says itself what it lacks."""
    named = any(name.endswith(PATH_SUFFIXES) and value is not None for name, value in settings.items())
    return named or isinstance(sources[split_spec(spec)[0]].builder, CheckableSource)


class _EmptyTokenizer:
    """A text tokenizer that knows no word: masks are asked for, not made."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": []}


def find_source_faults(key: str, source: Any) -> Iterator[Fault]:
    """What is wrong with one entry of a stage's data, files that are not there included; keys begin with `key`."""
    if not isinstance(source, Mapping):
        yield Fault(key, f"{source!r} is not a source.", f"Write name: one of {', '.join(sources)}, and its settings.")
        return
    yield from (Fault(f"{key}.{name}", text) for name, text in find_use_faults(source))
    spec, _ = split_entry(source)
    wrong = find_component_faults(key, sources, spec)
    yield from wrong or _readable(key, spec)


def _readable(key: str, spec: Mapping[str, Any]) -> Iterator[Fault]:
    """Files and folders that a source names must be there; a source that names none is made, which costs nothing."""
    settings = resolve_settings(sources, spec)
    named = {k: v for k, v in settings.items() if k.endswith(PATH_SUFFIXES) and v is not None}
    lost = [(name, one) for name, value in named.items() for one in list_unmatched(value)]
    yield from (MissingFault(f"{key}.{n}", f"{one} does not exist.", "Write the path of your data.") for n, one in lost)
    builder = sources[split_spec(spec)[0]].builder
    if isinstance(builder, CheckableSource):
        wrong = [] if lost else builder.list_faults(settings)
        yield from (Fault(key, text) for text in wrong)
        if not lost and not wrong and isinstance(builder, FetchedSource):
            yield from (MissingFault(key, text) for text in builder.list_missing(settings))
        return
    if named:
        return
    try:
        sources.build(spec)
    except (ConfigError, DataError) as cause:
        yield Fault(key, str(cause))
