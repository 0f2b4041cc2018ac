"""Building as far as it goes: a component on the meta device, or what its neighbours may still be checked against."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmblocks.compat import warnings_not_raised
from mmblocks.errors import ConfigError
from mmblocks.model.checks.faults import Fault, component_faults
from mmblocks.registry import Registry, split
from mmblocks.settings import REQUIRED
from mmblocks.shapes import Size

FACTS = frozenset(
    {
        "align",
        "checkpoint",
        "dim",
        "family",
        "grid",
        "image_px",
        "max_tokens",
        "member",
        "members",
        "model_name",
        "patch_px",
        "queries",
        "scales",
        "select",
        "squash",
        "sizes",
        "stage",
        "strides",
        "view_px",
        "vocab_size",
    }
)
"""Settings that decide what neighbours meet: a part built without the one that was given says nothing about them."""


@dataclass(slots=True)
class Trial:
    """A component that was built, or None when nothing can be said about it, and what is wrong with it."""

    part: Any = None
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Beside:
    """What a visual tokenizer learns of its neighbours."""

    view_px: Size
    grid: Size
    spatial: bool
    squash: bool


STAND_INS = (Beside(Size(384, 384), Size(24, 24), True, True), Beside(Size(336, 336), Size(27, 27), True, False))
"""Neighbours to try a part beside when its own are unknown."""


@warnings_not_raised()
def tried(key: str, registry: Registry[Any], spec: Any, **wired: Any) -> Trial:
    """Build a component. Settings that are refused are reported and left out, and the rest is tried once more."""
    own = component_faults(key, registry, spec)
    if any(fault.key == key for fault in own):
        return Trial(faults=own)
    name, given = split(spec)
    refused = {fault.key.removeprefix(f"{key}.") for fault in own}
    try:
        return Trial(_build_without(registry, name, given, refused, wired), own)
    except Exception as cause:  # whatever a constructor raises is a reason against it
        named = settings_named(str(cause), given)
        where = f"{key}.{named[0]}" if len(named) == 1 else key
        own.append(Fault(where, str(cause) if isinstance(cause, ConfigError) else f"{type(cause).__name__}: {cause}"))
    try:
        return Trial(_build_without(registry, name, given, {*refused, *named}, wired) if named else None, own)
    except Exception:  # the first try has said what is wrong
        return Trial(faults=own)


def _build_without(
    registry: Registry[Any], name: str, given: Mapping[str, Any], refused: set[str], wired: Mapping[str, Any]
) -> Any:
    needed = {s.name for s in registry.schema(name) if s.default is REQUIRED}
    usable = {k: v for k, v in given.items() if k not in refused}
    if refused & FACTS or needed - usable.keys():
        return None
    return registry.build({"name": name, **usable}, **wired)


def settings_named(message: str, given: Mapping[str, Any]) -> list[str]:
    """Which of the given settings an error speaks of: messages write `name=value`."""
    return [name for name in given if re.search(rf"\b{re.escape(name)}=", message)]


def common(trials: Sequence[Trial]) -> list[Fault]:
    """What is wrong beside all stand-ins alike."""
    first, *others = trials
    return [fault for fault in first.faults if all(fault in other.faults for other in others)]
