"""Whether a stage can run: its values, what it trains, its template, objective and data, before anything is read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from mmblocks.components import ChatTemplate, templates
from mmblocks.conversation import PreferencePair
from mmblocks.data.mixing.entries import find_entry_faults, split_entry
from mmblocks.data.records.file_patterns import list_unmatched
from mmblocks.data.sources import SelfCheckedSource, sources
from mmblocks.errors import ConfigError, DataError
from mmblocks.faults import Fault
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.checks.limits import find_local_tokenizer, find_template_faults
from mmblocks.model.spec import PARTS
from mmblocks.registry import split_spec
from mmblocks.settings import is_of_type
from mmblocks.shapes import SCENARIOS
from mmblocks.templates.lazy_tokenizer import LazyTextTokenizer
from mmblocks.train.objectives import describe_item_mismatch, objectives

PATH_SUFFIXES = ("path", "file", "folder", "images", "videos")
"""What the settings of a source that name files and folders end in."""


def to_sequence(value: object) -> Sequence[Any]:
    """A value that ought to be a list; empty where it is none, which others report."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def find_stage_faults(key: str, stage: Mapping[str, Any], seen: DryBuild, model: object) -> Iterator[Fault]:
    """Every fault of a stage of a run whose model was built dry; keys stand below `key`."""
    train = stage.get("train")
    yield from _find_value_faults(key, stage)
    if isinstance(train, Mapping):
        parts = [part for part in train if part in PARTS]
        sizes = [seen.count_parameters(part) for part in parts]
        if parts and not any(sizes) and None not in sizes:
            cure = f"Name one of {', '.join(part for part in PARTS if seen.count_parameters(part))}."
            yield Fault(f"{key}.train", f"{', '.join(parts)} of this model has no weights to learn.", cure)
    if isinstance(model, Mapping):
        yield from _find_tokenizer_faults(f"{key}.tokenizer", stage.get("tokenizer"), seen)
    yield from _find_template_faults(key, stage, seen)
    yield from _find_objective_faults(key, stage)
    for number, source in enumerate(to_sequence(stage.get("data"))):
        yield from find_source_faults(f"{key}.data.{number}", source)


def _find_value_faults(key: str, stage: Mapping[str, Any]) -> Iterator[Fault]:
    train = stage.get("train")
    lora = train.get("lora") if isinstance(train, Mapping) else None
    if lora is not None:
        where, given = f"{key}.train.lora", lora if isinstance(lora, Mapping) else {}
        if is_of_type(int, given.get("rank")) and given["rank"] < 1:
            yield Fault(f"{where}.rank", f"rank={given['rank']} holds nothing.", "Write 1 or more.")
        if is_of_type(float, given.get("dropout")) and not 0 <= given["dropout"] < 1:
            message = f"dropout={given['dropout']} is no share."
            yield Fault(f"{where}.dropout", message, "Write a number from 0 to below 1.")
        for package, extra in (("peft", "train"), *([("bitsandbytes", "quant")] if given.get("bits") else [])):
            if find_spec(package) is None:
                message = f"adapters need {package}, which is not installed."
                yield Fault(where, message, f"pip install 'mmblocks[{extra}]'", "missing")
    numbers = {name: value for name, value in stage.items() if is_of_type(float, value)}
    if numbers.get("epochs", 1) <= 0:
        yield Fault(f"{key}.epochs", f"epochs={stage['epochs']} reads nothing.", "Write a number above 0.")
    if stage.get("order", "mixed") != "mixed" and stage.get("global_batch_size") is None:
        cure = "Write global_batch_size, or order: mixed."
        yield Fault(f"{key}.order", "samples of like length are put together batch by batch.", cure)
    if not 0 <= numbers.get("beta2", 0) < 1:
        cure = "Write a number from 0 to below 1, such as 0.999."
        yield Fault(f"{key}.beta2", f"beta2={stage['beta2']} is no decay of an average.", cure)
    yield from find_warmup_fault(key, stage)
    if numbers.get("weight_decay", 0) < 0:
        yield Fault(f"{key}.weight_decay", f"weight_decay={numbers['weight_decay']} is negative.", "Write 0 or more.")
    if numbers.get("max_grad_norm", 1) <= 0:
        message = f"max_grad_norm={numbers['max_grad_norm']} would stop every step."
        yield Fault(f"{key}.max_grad_norm", message, "Write a norm above 0.")
    if stage.get("overlong") == "cut_answer" and stage.get("targets") == "original":
        cure = "Write targets: answers, or overlong: skip."
        yield Fault(
            f"{key}.overlong", "targets=original learns more than answers, so it is not known where they end.", cure
        )


def find_warmup_fault(key: str, given: Mapping[str, Any]) -> Iterator[Fault]:
    """A warmup that is no share of the steps."""
    warmup = given.get("warmup", 0)
    if is_of_type(float, warmup) and not 0 <= warmup <= 1:
        yield Fault(f"{key}.warmup", f"warmup={warmup} is not a share of the steps.", "Write a number from 0 to 1.")


def _find_tokenizer_faults(key: str, tokenizer: object, seen: DryBuild) -> Iterator[Fault]:
    """Visual tokenizers of the stage's own that do not fit the model, or insert tokens that it has not learned."""
    if not isinstance(tokenizer, Mapping) or not tokenizer:
        return
    if unknown := [scenario for scenario in tokenizer if scenario not in SCENARIOS]:
        yield Fault(f"{key}.{unknown[0]}", "no such scenario.", f"Write one of {', '.join(SCENARIOS)}.")
        return
    changed, begin = seen.with_tokenizers(tokenizer), "model.tokenizer."
    for fault in changed.faults:
        if fault.key.startswith(begin) and fault not in seen.faults:
            yield replace(fault, key=f"{key}.{fault.key.removeprefix(begin)}")
    if changed.errors or seen.errors:
        return
    if unlearned := set(changed.router.learned_tokens) - set(seen.router.learned_tokens):
        names = ", ".join(sorted(unlearned))
        message = f"it inserts the learned tokens {names}, which the model's own tokenizers do not have."
        yield Fault(key, message, "Let one of the model's scenarios use a tokenizer with these tokens.")


def _find_template_faults(key: str, stage: Mapping[str, Any], seen: DryBuild) -> Iterator[Fault]:
    """A template of the stage's own that the text tokenizer cannot write, and masks that no template of LLaVA's has."""
    name = stage.get("template")
    template: ChatTemplate | None = seen.template
    if isinstance(name, str):
        if faults := templates.find_faults(name, f"{key}.template"):
            yield from faults
            return
        template = own = templates.build(name, text_tokenizer=LazyTextTokenizer.from_backbone(seen.backbone))
        is_unread = any(fault.key == "model.backbone.text_tokenizer" for fault in seen.faults)
        if seen.backbone is not None and find_local_tokenizer(seen.backbone) is not None and not is_unread:
            yield from find_template_faults(f"{key}.template", own, seen.backbone.text_tokenizer)
    if stage.get("targets") == "original" and template is not None:
        from mmblocks.data.sample.original_targets import make_original_spans

        try:
            make_original_spans(template, [], _EmptyTokenizer())
        except ConfigError as cause:
            yield Fault(f"{key}.targets", str(cause))


class _EmptyTokenizer:
    """A text tokenizer without words, for masks of a conversation without messages."""

    def __call__(self, text: str, **settings: bool) -> dict[str, list[int]]:
        return {"input_ids": []}


def _find_objective_faults(key: str, stage: Mapping[str, Any]) -> Iterator[Fault]:
    """An objective that does not exist or cannot be set so, and synthetic sources that do not hold what it compares."""
    spec = stage.get("objective", "answers")
    if faults := objectives.find_faults(spec, f"{key}.objective"):
        yield from faults
        return
    try:
        objective = objectives.build(spec)
    except ConfigError as cause:
        yield Fault(f"{key}.objective", str(cause))
        return
    for number, source in enumerate(to_sequence(stage.get("data"))):
        if not isinstance(source, Mapping) or find_entry_faults(source):
            continue
        spec, _ = split_entry(source)
        if _list_paths(spec) or isinstance(sources[split_spec(spec)[0]].builder, SelfCheckedSource):
            continue  # it reads files
        with suppress(ConfigError, DataError):
            built = sources.build(spec)
            if len(built) and isinstance(built[0], PreferencePair) is not objective.needs_pairs:
                yield Fault(f"{key}.data.{number}", describe_item_mismatch(objective))


def find_source_faults(key: str, source: object) -> Iterator[Fault]:
    """What is wrong with one entry of a stage's data, files that are not there included; keys stand below `key`."""
    if not isinstance(source, Mapping):
        yield Fault(key, f"{source!r} is not a source.", f"Write name: one of {', '.join(sources)}, and its settings.")
        return
    spec, _ = split_entry(source)
    faults = find_entry_faults(source, key)
    yield from faults
    if sources.find_own_faults(spec):
        return
    paths, builder = _list_paths(spec), sources[split_spec(spec)[0]].builder
    lost = [(name, path) for name, value in paths.items() for path in list_unmatched(value)]
    for name, path in lost:
        yield Fault(f"{key}.{name}", f"{path} does not exist.", "Write the path of your data.", "missing")
    if isinstance(builder, SelfCheckedSource):
        if not lost:
            yield from (fault.move_below(key) for fault in builder.find_faults(sources.resolve_settings(spec)))
    elif not paths:  # it makes its records, which costs nothing
        try:
            sources.build(spec)
        except (ConfigError, DataError) as cause:
            yield Fault(key, str(cause))


def _list_paths(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a source that name files and folders."""
    settings = sources.resolve_settings(spec).items()
    return {name: value for name, value in settings if name.endswith(PATH_SUFFIXES) and value is not None}
