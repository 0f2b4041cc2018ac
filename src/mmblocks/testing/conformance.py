"""A conformance check is a function that tests one thing of a component; `require_conformance` runs them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmblocks.compat import suppress_warning_errors
from mmblocks.registry import Registry, Spec, split_spec


class ConformanceError(AssertionError):
    """Every conformance check that a component fails, each with the shape or value that shows it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A component under test: its registry, and a class, a factory or a registered name with settings."""

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

    def build(self, **wired: object) -> Any:
        """The component, with those of the `wired` arguments that it takes; the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if isinstance(self.part, str):
                return self.registry.build({"name": self.part, **self.settings}, **wired)
            parameters = inspect.signature(self.part).parameters
            return self.part(**self.settings, **{k: v for k, v in wired.items() if k in parameters})

    def __str__(self) -> str:
        return self.part if isinstance(self.part, str) else self.part.__qualname__


ConformanceCheck = Callable[[Subject], None]
"""Raises an AssertionError with what was seen where a subject fails it. Its docstring states what conforms."""


@suppress_warning_errors()
def require_conformance(checks: Sequence[ConformanceCheck], subject: Subject) -> None:
    """Run every check. Raises `ConformanceError` that lists all that fail."""
    failures = []
    for check in checks:
        try:
            check(subject)
        except Exception as cause:  # whatever a component raises fails the check that met it
            seen = str(cause) if isinstance(cause, AssertionError) else f"{type(cause).__name__}: {cause}"
            failures.append(f"  - {describe_check(check)} {seen}".replace("\n", "\n    "))
    if failures:
        raise ConformanceError(f"{subject.registry.kind} {subject}:\n" + "\n".join(failures))


def describe_check(check: ConformanceCheck) -> str:
    """What conforms, in one line."""
    return (inspect.getdoc(check) or check.__name__).partition("\n")[0]


def check_that(condition: bool, seen: str) -> None:
    """An assertion with a sentence about what was seen."""
    if not condition:
        raise AssertionError(seen)


def find_silent_parameters(module: torch.nn.Module) -> list[str]:
    """Parameters that a backward pass has not reached."""
    return [
        n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
