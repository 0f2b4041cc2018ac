"""A law is a function that asks one thing of a part; a battery asks them all and says which are broken, on what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmblocks.compat import suppress_warning_errors
from mmblocks.registry import Registry, Spec, split_spec

ConformanceCheck = Callable[[Any], None]
"""Asks of a `Subject`. Its docstring states the law; an AssertionError says on what it was broken."""


class ConformanceError(AssertionError):
    """Every law that a part breaks, each with the shape or value that shows it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A part under test: its registry, and a class, a factory or a registered name with settings."""

    registry: Registry[Any]
    part: Callable[..., Any] | str
    settings: dict[str, Any]

    @classmethod
    def from_part(cls, registry: Registry[Any], part: Callable[..., Any] | Spec, settings: dict[str, Any]) -> Subject:
        """A class or factory takes `settings`; a registered component its `tiny` settings, changed by these."""
        if callable(part):
            return cls(registry, part, settings)
        name, own = split_spec(part)
        tiny = {} if registry[name].preset_of else registry[name].tiny
        return cls(registry, name, {**tiny, **own, **settings})

    def build(self, **wired: Any) -> Any:
        """The part with sizes of neighbours that it asks for; the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if isinstance(self.part, str):
                return self.registry.build({"name": self.part, **self.settings}, **wired)
            asked = inspect.signature(self.part).parameters
            return self.part(**self.settings, **{k: v for k, v in wired.items() if k in asked})

    def __str__(self) -> str:
        return self.part if isinstance(self.part, str) else self.part.__qualname__


def require_conformance(laws: Sequence[ConformanceCheck], subject: Subject) -> None:
    """Ask every law. Raises `LawBroken` that lists all broken ones."""
    broken = [said for law in laws if (said := _find_failure(law, subject))]
    if broken:
        raise ConformanceError(f"{subject.registry.kind} {subject}:\n" + "\n".join(f"  - {said}" for said in broken))


@suppress_warning_errors()
def _find_failure(law: ConformanceCheck, subject: Subject) -> str:
    try:
        law(subject)
    except Exception as cause:  # whatever a part raises breaks the law that met it
        shown = str(cause) if isinstance(cause, AssertionError) else f"{type(cause).__name__}: {cause}"
        return f"{describe_check(law)} {shown}".replace("\n", "\n    ")
    return ""


def describe_check(law: ConformanceCheck) -> str:
    """A law in words."""
    return (inspect.getdoc(law) or law.__name__).partition("\n")[0]


def check_that(held: bool, shown: str) -> None:
    """An assertion that says what was seen."""
    if not held:
        raise AssertionError(shown)


def find_silent_parameters(module: torch.nn.Module) -> list[str]:
    """Parameters that a backward pass has not reached."""
    return [
        n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
