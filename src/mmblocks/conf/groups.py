"""Hydra's config groups, made from the registries: a component's signature is its schema, there is no YAML for it."""

import dataclasses
import logging
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from mmblocks.components import REGISTRIES
from mmblocks.image_reading import ImageReading
from mmblocks.model import systems
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import REQUIRED, Setting, list_settings
from mmblocks.shapes import SCENARIOS, Scenario
from mmblocks.train.stages import Stage, TrainRun

log = logging.getLogger(__name__)

SCHEMA = "train_run"
"""What every recipe starts from: the keys of a run with their types, and LLaVA-OneVision's components."""

GROUPS: dict[str, tuple[str, Scenario | None]] = {
    "model/encoder": ("encoder", None),
    "model/projector": ("projector", None),
    "model/pooling": ("pooling", None),
    **{f"model/tokenizer/{scenario}": ("tokenizer", scenario) for scenario in SCENARIOS},
    "model/backbone": ("backbone", None),
    "model/template": ("template", None),
}
"""Group -> the kind of its components, and the scenario they must serve."""

SYSTEM = "system"
"""The group that chooses all components at once: `- /system: llava_next/vicuna_7b` after `- /train_run` in a recipe."""

BASE_SYSTEM = "base_system"
"""The key under which Hydra's config holds the name of that system; composing takes it out again."""


class _LazyOption(ConfigNode):
    """An entry of Hydra's store that is made when it is chosen: a run chooses ten of some three hundred."""

    def __init__(
        self, name: str, make_node: Callable[[], Any], *, group: str | None = None, package: str | None = None
    ):
        self.name, self.group, self.package, self.provider = f"{name}.yaml", group, package, None
        self._make_node = make_node

    @cached_property
    def node(self) -> DictConfig:  # type: ignore[override]
        return OmegaConf.structured(self._make_node())


def register_groups() -> None:
    """Tell Hydra every component and the schema of a run. Safe to call again, e.g. after installing a plug-in."""
    for group, (kind, _) in GROUPS.items():
        for name in list_options(group):
            if _is_usable(kind, name):
                _store_option(_LazyOption(name, partial(_make_component_node, kind, name), group=group))
    _store_option(_LazyOption(SCHEMA, make_run_node))
    for name in systems.list_system_names():
        system, _, size = name.partition("/")
        _store_option(
            _LazyOption(size, partial(_make_system_node, name), group=f"{SYSTEM}/{system}", package="_global_")
        )


def _store_option(option: _LazyOption) -> None:
    """Put an option where `ConfigStore.store` puts a node, which would have to be there already."""
    folder = ConfigStore.instance().repo
    for part in option.group.split("/") if option.group else ():
        folder = folder.setdefault(part, {})
    folder[option.name] = option


def _make_component_node(kind: str, name: str) -> type:
    return _make_schema(f"{kind}_{name}", [Setting("name", str, name), *REGISTRIES[kind].list_settings(name)])


def _make_system_node(system: str) -> dict[str, Any]:
    """A system as Hydra's overrides of every component group; systems choose by name alone."""
    slots = systems.compose(system).list_slots()
    choices = [{f"override /{key.replace('.', '/')}": str(spec)} for key, (_, spec) in slots.items()]
    return {"defaults": choices, BASE_SYSTEM: system}


def list_options(group: str) -> Iterator[str]:
    """Names that can be chosen in a group."""
    kind, scenario = GROUPS[group]
    return (name for name in REGISTRIES[kind] if scenario is None or can_serve(name, scenario))


def can_serve(tokenizer: str, scenario: Scenario) -> bool:
    """Whether a visual tokenizer is offered for a scenario; one that does not say is offered for all."""
    try:
        scenarios = getattr(REGISTRIES["tokenizer"][tokenizer].builder, "scenarios", None)
    except Exception:  # a broken plug-in is reported by _is_usable
        return True
    return not isinstance(scenarios, frozenset) or scenario in scenarios


def _is_usable(kind: str, name: str) -> bool:
    """False for a plug-in that cannot be imported, so that a broken one stops no other run. Our own are not tried."""
    registry = REGISTRIES[kind]
    if registry.find_info(name).module.startswith("mmblocks."):
        return True
    try:
        registry.list_settings(name)
    except Exception as cause:
        log.warning("%s %r is left out: %s: %s", kind, name, type(cause).__name__, cause)
        return False
    return True


# Structured configs -------------------------------------------------------------------------------------------------


def make_run_node() -> type:
    """`TrainRun` for Hydra: typed keys, one group per component, the components of `ModelSpec` as defaults."""
    settings = list_settings(TrainRun)
    stage = _make_schema("Stage", list_settings(Stage).values())
    images = _make_schema("Images", list_settings(ImageReading).values())
    tree: dict[str, Any] = {}  # the groups: {"encoder": {}, ..., "tokenizer": {"image": {}, ...}}
    for group in GROUPS:
        node = tree
        for part in group.split("/")[1:]:
            node = node.setdefault(part, {})
    image_field: Any = ("images", images, dataclasses.field(default_factory=images))
    model = dataclasses.make_dataclass("Model", [image_field], bases=(_make_slots("Components", tree),))
    own = {"model": model, "stages": typing.List[stage]}  # noqa: UP006  # OmegaConf reads typing.List
    chosen = {key.replace(".", "/"): str(spec) for key, (_, spec) in ModelSpec().list_slots().items()}
    defaults = ["_self_", *({group: chosen[group]} for group in GROUPS)]
    fields: list[Any] = [("defaults", typing.List[Any], dataclasses.field(default_factory=lambda: list(defaults)))]  # noqa: UP006
    for name, setting in settings.items():
        if name == "model":
            fields.append((name, own[name], dataclasses.field(default_factory=own[name])))
        elif name in own:
            fields.append((name, own[name], MISSING))
        else:
            fields.append(_make_field(setting))
    fields.append((BASE_SYSTEM, typing.Optional[str], None))  # noqa: UP045  # as OmegaConf reads it
    return dataclasses.make_dataclass("Run", fields)


def _make_slots(name: str, tree: Mapping[str, Any]) -> Any:
    """Places for components: any structured config fits, other keys do not."""
    fields: list[Any] = []
    for key, below in tree.items():
        inner = _make_slots(key.title(), below) if below else None
        fields.append((key, inner, dataclasses.field(default_factory=inner)) if inner else (key, Any, MISSING))
    return dataclasses.make_dataclass(name, fields)


def _make_schema(name: str, settings: typing.Iterable[Setting]) -> Any:
    return dataclasses.make_dataclass(re.sub(r"\W", "_", name), [_make_field(s) for s in settings])


def _make_field(setting: Setting) -> tuple[str, Any, Any]:
    if setting.default is REQUIRED:
        return setting.name, to_omegaconf_type(setting.annotation), MISSING
    default = to_plain_value(setting.default)
    annotation = to_omegaconf_type(setting.annotation)
    if default is None and type(None) not in typing.get_args(annotation):
        annotation = Any
    return setting.name, annotation, dataclasses.field(default_factory=lambda: default)


def to_omegaconf_type(annotation: object) -> Any:
    """The type by which OmegaConf checks a value at once; `Any` where only the registry can tell (unions, literals)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (int, float, str, bool):
        return annotation
    if origin in (typing.Union, types.UnionType):
        members = [a for a in arguments if a is not type(None)]
        alone = members[0] if len(members) == 1 and len(members) < len(arguments) else None
        return typing.Optional[alone] if alone in (int, float, str, bool) else Any  # noqa: UP045
    if origin in (list, Sequence):
        return typing.List[to_omegaconf_type(arguments[0])]  # noqa: UP006
    if origin in (dict, Mapping):
        return typing.Dict[str, to_omegaconf_type(arguments[1])]  # noqa: UP006
    return Any


def to_plain_value(value: object) -> Any:
    """A default as YAML would hold it."""
    if isinstance(value, list | tuple):
        return [to_plain_value(v) for v in value]
    if isinstance(value, Mapping):
        return {k: to_plain_value(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value
