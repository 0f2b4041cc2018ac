"""A recipe and overrides become one checked, plain dict."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mmblocks.components import REGISTRIES
from mmblocks.conf.files import find_recipe, find_shipped_folder, list_recipe_folders, list_recipes
from mmblocks.conf.groups import BASE_SYSTEM, GROUPS, SCHEMA, SYSTEM, register_groups
from mmblocks.conf.hydra_errors import HYDRA_ERRORS, to_config_error
from mmblocks.conf.overrides import needs_translation, translate_overrides
from mmblocks.data.mixing.entries import find_entry_faults
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.image_reading import find_reading_faults
from mmblocks.model import systems
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import make_unknown_fault
from mmblocks.train.stages import find_run_faults
from mmblocks.train.starting_model import COMPONENTS, find_start

HYDRA_VERSION = "1.3"


def compose(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe (name or path) with Hydra overrides as plain values: the fields of `TrainRun`.

    Raises `ConfigError` for whatever does not fit: names, keys, types, settings of components and data sources.
    """
    raw = compose_run(recipe, overrides)
    faults = [*find_run_faults(raw), *_find_model_faults(raw["model"])]
    readers = {f"stages.{i}": stage for i, stage in enumerate(raw["stages"])} | {"evaluate": raw["evaluate"]}
    for key, reader in readers.items():
        for number, source in enumerate((reader.get("data") or []) if isinstance(reader, dict) else []):
            faults += find_entry_faults(source, f"{key}.data.{number}")
    if listed := (raw["evaluate"] or {}).get("tasks"):
        from mmblocks.eval.task_settings import find_task_faults  # imports torch

        faults += [fault for n, task in enumerate(listed) for fault in find_task_faults(task, f"evaluate.tasks.{n}")]
    _raise_faults(recipe, faults)
    return raw


def compose_for_planning(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as `compose` gives it, or {"model": ...} of a system such as llava_next/vicuna_7b."""
    if not is_system(name):
        return compose(name, overrides)
    raw = compose_unchecked(name, overrides)
    _raise_faults(name, list(_find_model_faults(raw["model"])))
    return raw


def compose_run(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `compose`, with keys and types checked by Hydra alone: for what checks the whole run itself, as `train.run` does."""
    if is_system(recipe):
        raise ConfigError(
            f"{recipe!r} is a system: it has no data and no stages. Write a recipe with the defaults '- /train_run' and "
            f"'- /system: {recipe}', or look at it with `mmblocks plan`."
        )
    return compose_unchecked(recipe, overrides)


def compose_unchecked(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `compose_run`, for a recipe or for a system, which gives {"model": ...} as it has no stages."""
    register_groups()
    if is_system(name):
        system, size = systems.find_system(name)
        folder, config_name, choices = find_shipped_folder(), SCHEMA, [f"+{SYSTEM}={system.name}/{size}"]
    else:
        path = find_recipe(name).path
        folder, config_name, choices = path.parent, path.stem, []
    try:
        with isolate_hydra(), hydra.initialize_config_dir(str(folder), version_base=HYDRA_VERSION):
            choices = [*choices, make_search_path()]
            if needs_translation(overrides):  # which components and stages there are decides what overrides mean
                groups = [word for word in overrides if "/" in word.partition("=")[0]]
                chosen: Any = OmegaConf.to_container(hydra.compose(config_name, overrides=[*groups, *choices]))
                overrides = translate_overrides(overrides, chosen)
            config = hydra.compose(config_name, overrides=[*overrides, *choices])
            config = OmegaConf.masked_copy(config, ["model"]) if is_system(name) else config
        raw: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except HYDRA_ERRORS as error:
        raise to_config_error(name, error) from error
    _raise_faults(name, list(_find_dotted_components(config)))
    system = raw.pop(BASE_SYSTEM, None)
    if system is not None and find_start(raw) is not None:
        unchosen = list(_list_unchosen_slots(raw["model"], system, overrides))
        raw["from_weights"] = [slot for slot in unchosen if slot in (raw["from_weights"] or unchosen)]
    return raw


def _list_unchosen_slots(model: Mapping[str, Any], system: str, overrides: Sequence[str]) -> Iterator[str]:
    """Components that are as the recipe's system has them and that no override names."""
    named = [word.partition("=")[0].lstrip("+~").replace("/", ".") for word in overrides]
    base, chosen = systems.compose(system).to_dict(), ModelSpec.from_dict(model).to_dict()
    for name in COMPONENTS:
        is_named = any(f"{word}.".startswith(f"model.{name}.") for word in named)
        path = name.split(".")
        if not is_named and reduce(getitem, path, chosen) == reduce(getitem, path, base):
            yield name


def is_system(name: str) -> bool:
    """Whether a name is a system's; a recipe of the same name goes first."""
    return name not in list_recipes() and name.partition("/")[0] in systems.SYSTEMS


def make_search_path() -> str:
    """The override that lets recipes build on each other (`- /tiny/base@_global_`)."""
    return f"hydra.searchpath=[{','.join(repr(f'file://{root}') for root in list_recipe_folders())}]"


def _raise_faults(recipe: str, faults: Sequence[Fault]) -> None:
    if faults:
        raise ConfigError.from_faults(faults, f"recipe {recipe!r} cannot be used")


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


def _find_dotted_components(config: DictConfig) -> Iterator[Fault]:
    """Components chosen with a dot: they would keep the settings of another."""
    for group in GROUPS:
        key = group.replace("/", ".")
        node = OmegaConf.select(config, key)
        name = node.get("name") if isinstance(node, DictConfig) else node
        schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        chosen = OmegaConf.structured(schema).name if hasattr(schema, "__dataclass_fields__") else name
        if not isinstance(node, DictConfig) or name != chosen:
            message = f"{name!r} is chosen with a dot, which keeps the settings of another component."
            yield Fault(key, message, f"Write {group}={name}.")


def _find_model_faults(model: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the settings of a model's components, each by itself, and keys that are no component's."""
    slots = {group.replace("/", "."): kind for group, (kind, _) in GROUPS.items()}
    for key, kind in slots.items():
        _, *parts = key.split(".")
        yield from REGISTRIES[kind].find_faults(reduce(getitem, parts, model), key)
    yield from find_reading_faults(model["images"], "model.images")
    known = [slot.removeprefix("model.") for slot in slots]
    given = [name for name in model if name not in ("tokenizer", "images")]
    for name in (*given, *(f"tokenizer.{name}" for name in model["tokenizer"])):
        if name not in known:
            yield make_unknown_fault(name, "is not a setting.", known, "model")
