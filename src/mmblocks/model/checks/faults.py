"""A fault of a configuration, and the faults that names and settings show before anything is built. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmblocks.errors import ConfigError, UnknownComponentError
from mmblocks.registry import Registry, split
from mmblocks.settings import REQUIRED, Setting, did_you_mean


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a composition or a run cannot work: the config key, what is wrong, and what to write instead.

    Where a component's own error is passed on, the cure is part of the message.
    """

    key: str
    message: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" + (f" {self.cure}" if self.cure else "")


@dataclass(frozen=True, slots=True)
class Missing(Fault):
    """Something that is as it should be and not on this machine; the cure says how to get it.

    fetched: whether a run gets it by itself, from the hub, where there is a network.
    """

    fetched: bool = False

    __str__ = Fault.__str__


def component_faults(key: str, registry: Registry[Any], spec: Any) -> list[Fault]:
    """Every fault of a component's name and settings, each with its own key; nothing is built."""
    kind = registry.kind
    try:
        name, settings = split(spec)
    except (ConfigError, TypeError, ValueError):
        cure = f"Write a name, or a mapping with a 'name'; known: {', '.join(registry)}."
        return [Fault(key, f"{spec!r} is not a component.", cure)]
    try:
        known = {s.name: s for s in registry.schema(name)}
    except UnknownComponentError:
        return [Fault(key, f"no {kind} is called {name!r}.", did_you_mean(name, registry).strip())]
    except Exception as cause:  # a plug-in may fail in any way when it is imported; the other parts are still checked
        return [Fault(key, f"the {kind} {name!r} cannot be imported: {type(cause).__name__}: {cause}.")]
    return list(_settings_faults(key, f"{kind} {name!r}", settings, known))


def _settings_faults(key: str, whose: str, given: Mapping[str, Any], known: Mapping[str, Setting]) -> Iterator[Fault]:
    for name, value in given.items():
        if name not in known:
            yield Fault(f"{key}.{name}", f"{whose} has no setting {name!r}.", did_you_mean(name, known).strip())
        else:
            for reason, cure in known[name].faults_of(value):
                yield Fault(f"{key}.{name}", f"{whose}: {reason}.", cure)
    for setting in known.values():
        if setting.default is REQUIRED and setting.name not in given:
            yield Fault(
                f"{key}.{setting.name}", f"{whose} needs the setting {setting.name!r}.", f"Write a {setting.type_name}."
            )


def resolved(registry: Registry[Any], spec: Any) -> dict[str, Any]:
    """Every setting of a component with its value, defaults and presets included."""
    name, given = split(spec)
    return {s.name: given.get(s.name, s.default) for s in registry.schema(name)}
