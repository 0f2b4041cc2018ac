"""A recipe and overrides become one checked, plain dict."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mmblocks.components import REGISTRIES
from mmblocks.conf.faults import FOREIGN, refusal
from mmblocks.conf.files import Recipe, find_recipe, recipes, roots, shipped_recipes
from mmblocks.conf.groups import GROUPS, SCHEMA, SYSTEM, register_groups
from mmblocks.conf.overrides import concerns_settings, translated
from mmblocks.data.mixing.entries import split_entry, use_faults
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.image_reading import reading_faults
from mmblocks.model import systems
from mmblocks.settings import did_you_mean
from mmblocks.train.stages import run_faults

HYDRA_VERSION = "1.3"


def compose(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe (name or path) with Hydra overrides as plain values: the fields of `TrainRun`.

    Raises `ConfigError` for whatever does not fit: names, keys, types, settings of components and data sources.
    """
    if is_system(recipe):
        raise ConfigError(
            f"{recipe!r} is a system: it has no data and no stages. Write a recipe with the defaults '- /train_run' and "
            f"'- /system: {recipe}', or look at it with `mmblocks plan`."
        )
    found = find_recipe(recipe)
    return plain_run(_config(found, overrides), found.name)


def compose_for_planning(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as `compose` gives it, or {"model": ...} of a system such as llava_next/vicuna_7b."""
    if not is_system(name):
        return compose(name, overrides)
    raw = compose_unchecked(name, overrides)
    _refuse(name, _component_faults(raw))
    return raw


def is_system(name: str) -> bool:
    """Whether a name is a system's; a recipe of the same name goes first."""
    return name not in recipes() and name.partition("/")[0] in systems.SYSTEMS


def compose_unchecked(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `compose`, with keys and types checked by Hydra alone: for `mmblocks check`, which lists all that is wrong.

    A system gives {"model": ...}, as it has no stages.
    """
    if is_system(recipe):
        return _plain(_config_of_system(recipe, overrides), recipe)
    found = find_recipe(recipe)
    return _plain(_config(found, overrides), found.name)


def _config_of_system(system: str, overrides: Sequence[str]) -> DictConfig:
    found, size = systems.find(system)
    register_groups()
    try:
        with own_hydra(), hydra.initialize_config_dir(str(shipped_recipes()), version_base=HYDRA_VERSION):
            config = _overridden(SCHEMA, overrides, [f"+{SYSTEM}={found.name}/{size}"])
            return OmegaConf.masked_copy(config, ["model"])
    except FOREIGN as error:
        raise refusal(system, error) from error


def _config(found: Recipe, overrides: Sequence[str]) -> DictConfig:
    register_groups()
    try:
        with own_hydra(), hydra.initialize_config_dir(str(found.path.parent), version_base=HYDRA_VERSION):
            return _overridden(found.path.stem, overrides)
    except FOREIGN as error:
        raise refusal(found.name, error) from error


def _overridden(name: str, overrides: Sequence[str], choices: Sequence[str] = ()) -> DictConfig:
    """Composed twice where overrides change settings: which components and stages there are decides what they mean."""
    own = [*choices, search_path()]
    if not concerns_settings(overrides):
        return hydra.compose(name, overrides=[*overrides, *own])
    groups = [word for word in overrides if "/" in word.partition("=")[0]]
    chosen: Any = OmegaConf.to_container(hydra.compose(name, overrides=[*groups, *own]))
    return hydra.compose(name, overrides=[*translated(overrides, chosen), *own])


def search_path() -> str:
    """The override that lets recipes build on each other (`- /tiny/base@_global_`)."""
    return f"hydra.searchpath=[{','.join(repr(f'file://{root}') for root in roots())}]"


def plain_run(config: DictConfig, recipe: str) -> dict[str, Any]:
    """A composed config as plain values. Raises `ConfigError` that lists every fault."""
    raw = _plain(config, recipe)
    _refuse(recipe, [*run_faults(raw), *_component_faults(raw), *_source_faults(raw)])
    return raw


def _plain(config: DictConfig, recipe: str) -> dict[str, Any]:
    try:
        raw: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except FOREIGN as error:
        raise refusal(recipe, error) from error
    _refuse(recipe, _renamed(config))
    return raw


def _refuse(recipe: str, faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError(f"recipe {recipe!r} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def as_yaml(config: Mapping[str, Any]) -> str:
    """A composed config as people read it."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


@contextmanager
def own_hydra() -> Iterator[None]:
    """Hydra holds one global state; a program that runs under Hydra itself gets its own back."""
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")  # its default suits us
            yield
    finally:
        GlobalHydra.instance().hydra = before  # leaving `initialize_config_dir` has put another instance in place


# Faults that types cannot show --------------------------------------------------------------------------------------


def _renamed(config: DictConfig) -> list[str]:
    """Components chosen with a dot: they would keep the settings of another."""
    faults = []
    for group in GROUPS:
        key = group.replace("/", ".")
        node = OmegaConf.select(config, key)
        name = node.get("name") if isinstance(node, DictConfig) else node
        schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        chosen = OmegaConf.structured(schema).name if hasattr(schema, "__dataclass_fields__") else name
        if not isinstance(node, DictConfig) or name != chosen:
            faults.append(f"{key}={name!r}: components are chosen with a slash; write {group}={name}.")
    return faults


def _component_faults(raw: Mapping[str, Any]) -> list[str]:
    faults = []
    for group, (kind, _) in GROUPS.items():
        spec: Any = raw
        for part in group.split("/"):
            spec = spec[part]
        faults += [f"{group.replace('/', '.')}: {reason}" for reason in REGISTRIES[kind].reasons_against(spec)]
    return faults + reading_faults(raw["model"]["images"], "model.images") + _strangers(raw)


def _strangers(raw: Mapping[str, Any]) -> list[str]:
    """Keys below `model` that belong to no group (added with `+`)."""
    slots = {group.replace("/", ".") for group in GROUPS}
    given = [f"model.{k}" for k in raw["model"] if k not in ("tokenizer", "images")]
    given += [f"model.tokenizer.{k}" for k in raw["model"]["tokenizer"]]
    return [f"{key} is not a setting.{did_you_mean(key, slots)}" for key in given if key not in slots]


def _source_faults(raw: Mapping[str, Any]) -> list[str]:
    stages, evaluate = raw.get("stages"), raw.get("evaluate")
    readers = [(f"stages.{i}", stage) for i, stage in enumerate(stages if isinstance(stages, list) else [])]
    return [
        f"{where}.data.{j}: {reason}"
        for where, reader in [*readers, ("evaluate", evaluate if isinstance(evaluate, dict) else {})]
        for j, source in enumerate(reader.get("data") or [])
        for reason in _faults_of_source(source)
    ]


def _faults_of_source(source: Mapping[str, Any]) -> list[str]:
    settings, _ = split_entry(source)
    if not isinstance(settings.get("name"), str):
        return [f"{settings!r} has no 'name'; write name: SOURCE."]
    return [text for _, text in use_faults(source)] + sources.reasons_against(settings)
