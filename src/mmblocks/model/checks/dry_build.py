"""Building as far as it goes: a component on the meta device, or what its neighbours may still be checked against."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmblocks.compat import suppress_warning_errors
from mmblocks.errors import MMBlocksError
from mmblocks.faults import Fault, join_key
from mmblocks.registry import Registry, split_spec
from mmblocks.settings import REQUIRED
from mmblocks.shapes import Size

NEIGHBOUR_SETTINGS = frozenset(
    [
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
        "sizes",
        "squash",
        "stage",
        "strides",
        "view_px",
        "vocab_size",
    ]
)
"""Settings that decide what neighbours meet: a part built without the one that was given says nothing about them."""


@dataclass(slots=True)
class BuildAttempt:
    """A component that was built, or None when nothing can be said about it, and what is wrong with it."""

    part: Any = None
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenizerContext:
    """What a visual tokenizer learns of its neighbours."""

    view_px: Size
    grid: Size
    spatial: bool
    squash: bool


STAND_INS = (
    TokenizerContext(Size(384, 384), Size(24, 24), True, True),
    TokenizerContext(Size(336, 336), Size(27, 27), True, False),
)
"""Neighbours to try a part beside when its own are unknown."""


@suppress_warning_errors()
def try_build(key: str, registry: Registry[Any], spec: object, **wired: Any) -> BuildAttempt:
    """Build a component. Settings that are refused are reported and left out, and the rest is tried once more."""
    faults = registry.find_own_faults(spec, key)
    if any(fault.key == key for fault in faults):
        return BuildAttempt(faults=faults)
    name, given = split_spec(spec)
    needed = {s.name for s in registry.list_settings(name) if s.default is REQUIRED}
    refused = {fault.key.removeprefix(f"{key}.") for fault in faults}
    for is_retry in (False, True):
        usable = {k: v for k, v in given.items() if k not in refused}
        if refused & NEIGHBOUR_SETTINGS or needed - usable.keys():
            break
        try:
            return BuildAttempt(registry.build({"name": name, **usable}, **wired), faults)
        except Exception as cause:  # whatever a constructor raises is a reason against it
            if is_retry:  # the first try has said what is wrong
                break
            named = [name for name in getattr(cause, "settings", ()) if name in given]
            own = [fault.move_below(key) for fault in getattr(cause, "faults", ())]
            faults += own or [to_fault(key, cause, named)]
            if not named:
                break
            refused |= {*named}
    return BuildAttempt(faults=faults)


def to_fault(key: str, error: Exception, settings: Sequence[str] = ()) -> Fault:
    """An error of a component as a fault of its key, or of the one setting that is at fault."""
    text = str(error) if isinstance(error, MMBlocksError) else f"{type(error).__name__}: {error}"
    return Fault(join_key(key, *settings) if len(settings) == 1 else key, text)


def find_common_faults(trials: Sequence[BuildAttempt]) -> list[Fault]:
    """What is wrong beside all stand-ins alike."""
    first, *others = trials
    return [fault for fault in first.faults if all(fault in other.faults for other in others)]
