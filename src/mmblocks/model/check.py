"""Whether a composition can work, from its settings and meta tensors alone: every reason against it, at once."""

from __future__ import annotations

from dataclasses import dataclass

from mmblocks.components import REGISTRIES
from mmblocks.errors import ConfigError
from mmblocks.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a composition cannot work: the config key, what is wrong, and what to write instead."""

    key: str
    message: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" + (f" {self.cure}" if self.cure else "")


def faults(spec: ModelSpec) -> list[Fault]:
    """Every fault of a composition."""
    return [
        Fault(key, reason)
        for key, (kind, part) in spec.slots().items()
        for reason in REGISTRIES[kind].reasons_against(part)
    ]


def require(spec: ModelSpec) -> None:
    """Raise one `ConfigError` that lists every fault."""
    if found := faults(spec):
        raise ConfigError("this composition cannot work:\n" + "\n".join(f"  - {fault}" for fault in found))
