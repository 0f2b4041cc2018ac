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
from mmblocks.conf.faults import HYDRA_ERRORS, to_config_error
from mmblocks.conf.files import RecipeFile, find_recipe, find_shipped_folder, list_recipe_folders, list_recipes
from mmblocks.conf.groups import GROUPS, SCHEMA, SYSTEM, register_groups
from mmblocks.conf.overrides import needs_translation, translate_overrides
from mmblocks.data.mixing.entries import find_use_faults, split_entry
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.image_reading import list_reading_faults
from mmblocks.model import systems
from mmblocks.settings import format_suggestion
from mmblocks.train.stages import find_run_faults

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
    return to_checked_run(_compose_config(found, overrides), found.name)


def compose_for_planning(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as `compose` gives it, or {"model": ...} of a system such as llava_next/vicuna_7b."""
    if not is_system(name):
        return compose(name, overrides)
    raw = compose_unchecked(name, overrides)
    _raise_faults(name, _find_component_faults(raw))
    return raw


def is_system(name: str) -> bool:
    """Whether a name is a system's; a recipe of the same name goes first."""
    return name not in list_recipes() and name.partition("/")[0] in systems.SYSTEMS


def compose_unchecked(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `compose`, with keys and types checked by Hydra alone: for `mmblocks check`, which lists all that is wrong.

    A system gives {"model": ...}, as it has no stages.
    """
    if is_system(recipe):
        return _to_dict(_config_of_system(recipe, overrides), recipe)
    found = find_recipe(recipe)
    return _to_dict(_compose_config(found, overrides), found.name)


def _config_of_system(system: str, overrides: Sequence[str]) -> DictConfig:
    found, size = systems.find_system(system)
    register_groups()
    try:
        with isolate_hydra(), hydra.initialize_config_dir(str(find_shipped_folder()), version_base=HYDRA_VERSION):
            config = _apply_overrides(SCHEMA, overrides, [f"+{SYSTEM}={found.name}/{size}"])
            return OmegaConf.masked_copy(config, ["model"])
    except HYDRA_ERRORS as error:
        raise to_config_error(system, error) from error


def _compose_config(found: RecipeFile, overrides: Sequence[str]) -> DictConfig:
    register_groups()
    try:
        with isolate_hydra(), hydra.initialize_config_dir(str(found.path.parent), version_base=HYDRA_VERSION):
            return _apply_overrides(found.path.stem, overrides)
    except HYDRA_ERRORS as error:
        raise to_config_error(found.name, error) from error


def _apply_overrides(name: str, overrides: Sequence[str], choices: Sequence[str] = ()) -> DictConfig:
    """Composed twice where overrides change settings: which components and stages there are decides what they mean."""
    own = [*choices, make_search_path()]
    if not needs_translation(overrides):
        return hydra.compose(name, overrides=[*overrides, *own])
    groups = [word for word in overrides if "/" in word.partition("=")[0]]
    chosen: Any = OmegaConf.to_container(hydra.compose(name, overrides=[*groups, *own]))
    return hydra.compose(name, overrides=[*translate_overrides(overrides, chosen), *own])


def make_search_path() -> str:
    """The override that lets recipes build on each other (`- /tiny/base@_global_`)."""
    return f"hydra.searchpath=[{','.join(repr(f'file://{root}') for root in list_recipe_folders())}]"


def to_checked_run(config: DictConfig, recipe: str) -> dict[str, Any]:
    """A composed config as plain values. Raises `ConfigError` that lists every fault."""
    raw = _to_dict(config, recipe)
    _raise_faults(recipe, [*find_run_faults(raw), *_find_component_faults(raw), *_source_faults(raw)])
    return raw


def _to_dict(config: DictConfig, recipe: str) -> dict[str, Any]:
    try:
        raw: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except HYDRA_ERRORS as error:
        raise to_config_error(recipe, error) from error
    _raise_faults(recipe, _find_dotted_components(config))
    return raw


def _raise_faults(recipe: str, faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError(f"recipe {recipe!r} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def format_yaml(config: Mapping[str, Any]) -> str:
    """A composed config as people read it."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


@contextmanager
def isolate_hydra() -> Iterator[None]:
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


def _find_dotted_components(config: DictConfig) -> list[str]:
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


def _find_component_faults(raw: Mapping[str, Any]) -> list[str]:
    faults = []
    for group, (kind, _) in GROUPS.items():
        spec: Any = raw
        for part in group.split("/"):
            spec = spec[part]
        faults += [f"{group.replace('/', '.')}: {reason}" for reason in REGISTRIES[kind].reasons_against(spec)]
    return faults + list_reading_faults(raw["model"]["images"], "model.images") + _strangers(raw)


def _strangers(raw: Mapping[str, Any]) -> list[str]:
    """Keys below `model` that belong to no group (added with `+`)."""
    slots = {group.replace("/", ".") for group in GROUPS}
    given = [f"model.{k}" for k in raw["model"] if k not in ("tokenizer", "images")]
    given += [f"model.tokenizer.{k}" for k in raw["model"]["tokenizer"]]
    return [f"{key} is not a setting.{format_suggestion(key, slots)}" for key in given if key not in slots]


def _source_faults(raw: Mapping[str, Any]) -> list[str]:
    stages, evaluate = raw.get("stages"), raw.get("evaluate")
    readers = [(f"stages.{i}", stage) for i, stage in enumerate(stages if isinstance(stages, list) else [])]
    return [
        f"{where}.data.{j}: {reason}"
        for where, reader in [*readers, ("evaluate", evaluate if isinstance(evaluate, dict) else {})]
        for j, source in enumerate(reader.get("data") or [])
        for reason in _find_source_faults(source)
    ]


def _find_source_faults(source: Mapping[str, Any]) -> list[str]:
    settings, _ = split_entry(source)
    if not isinstance(settings.get("name"), str):
        return [f"{settings!r} has no 'name'; write name: SOURCE."]
    return [text for _, text in find_use_faults(source)] + sources.reasons_against(settings)
