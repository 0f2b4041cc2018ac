"""Which backend computes an op: the first that can take the inputs, or the one that the user names.

`MMBLOCKS_OPS` is "auto", the name of a backend ("reference"), or a backend for each op
("attention=varlen,gather_lerp=reference"); `use_backends` sets the same for a block of code. An op that has no backend
of that name chooses by itself.
"""

from __future__ import annotations

import logging
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
AUTO = "auto"
REFERENCE = "reference"
SETTING = "MMBLOCKS_OPS"
OPS: dict[str, Op] = {}
_requested: ContextVar[Mapping[str, str] | None] = ContextVar("mmblocks_ops", default=None)


@dataclass(frozen=True, eq=False, slots=True)
class Backend:
    """One implementation of an op.

    reasons_against: takes the inputs of `run`; why it cannot run them, empty where it can. unavailable_reasons: why it
    cannot run on this machine, whatever the inputs; `mmblocks doctor` shows it. run_backward: the gradients, where torch
    does not differentiate `run` by itself. tolerances: the largest error in each dtype, relative to the reference's
    largest number; dtypes that are not named are those of the op.
    """

    name: str
    run: Callable[..., Any]
    reasons_against: Callable[..., list[str]]
    unavailable_reasons: Callable[[], list[str]] = list
    run_backward: Callable[..., Any] | None = None
    tolerances: Mapping[torch.dtype, float] = field(default_factory=dict)


@dataclass(slots=True)
class Op:
    """An op and its backends, the fastest first and the reference, which can always run, last.

    order: all backends in the order in which they are tried, where the fastest depends on the inputs.
    """

    name: str
    backends: Sequence[Backend]
    order: Callable[..., Sequence[Backend]] | None = None
    _logged: set[tuple[str, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        assert self.reference.name == REFERENCE
        OPS[self.name] = self

    def __call__(self, *inputs: object, **settings: object) -> Any:
        """Run the chosen backend."""
        return self.choose_backend(*inputs, **settings).run(*inputs, **settings)

    @property
    def reference(self) -> Backend:
        return self.backends[-1]

    def find_backend(self, name: str) -> Backend | None:
        return next((backend for backend in self.backends if backend.name == name), None)

    def choose_backend(self, *inputs: object, **settings: object) -> Backend:
        """The backend that runs these inputs; a choice is logged once, with the reasons against faster backends.

        Raises `ConfigError` with the reasons where the user names a backend that cannot run them.
        """
        named = self.find_backend(find_requested_backend(self.name))
        if named is not None:
            if reasons := named.reasons_against(*inputs, **settings):
                raise ConfigError(
                    f"{self.name}: the chosen backend {named.name!r} cannot run here: {'; '.join(reasons)}. "
                    f"Leave the choice to mmblocks ({SETTING}={AUTO}) or choose {REFERENCE!r}."
                )
            return named
        rejected: list[str] = []
        for backend in self.backends if self.order is None else self.order(*inputs, **settings):
            reasons = backend.reasons_against(*inputs, **settings)
            if not reasons:
                if (choice := (backend.name, *rejected)) not in self._logged:
                    self._logged.add(choice)
                    log.info("%s: %s%s", self.name, backend.name, "".join(f"\n  not {reason}" for reason in rejected))
                return backend
            rejected.append(f"{backend.name}: {'; '.join(reasons)}")
        raise AssertionError("a reference has no reasons against it")


def accept_all_inputs(*inputs: object, **settings: object) -> list[str]:
    """`reasons_against` of a backend that runs everywhere."""
    return []


def list_ops() -> list[Op]:
    """Every op, by name."""
    _import_all_ops()
    return [OPS[name] for name in sorted(OPS)]


def find_requested_backend(op: str) -> str:
    """The name of the backend that the user chose for an op, `AUTO` without a choice."""
    requested = _requested.get()
    if requested is None:
        requested = _parse_setting(os.environ.get(SETTING, AUTO))
    return requested.get(op, requested.get("", AUTO))


@contextmanager
def use_backends(every: str = AUTO, **ops: str) -> Iterator[None]:
    """Choose backends in a block of code: `use_backends("reference")`, `use_backends(attention="varlen")`.

    Ops that are not named choose by themselves. Raises `ConfigError` for an op or a backend that does not exist.
    """
    requested = {"": every, **ops}
    _require_known_backends(requested)
    token = _requested.set(requested)
    try:
        yield
    finally:
        _requested.reset(token)


@cache
def _parse_setting(text: str) -> dict[str, str]:
    pairs = [word.strip().rpartition("=") for word in text.split(",") if word.strip()]
    requested = {op: backend for op, _, backend in pairs}
    _require_known_backends(requested)
    return requested


def _require_known_backends(requested: Mapping[str, str]) -> None:
    if requested.keys() == {""} and requested[""] in (AUTO, REFERENCE):
        return  # every op has these, so that none needs to be imported
    _import_all_ops()
    names = {op.name: [backend.name for backend in op.backends] for op in OPS.values()}
    every = sorted({name for backends in names.values() for name in backends})
    for op, backend in requested.items():
        if op and op not in names:
            raise ConfigError(f"{SETTING}: there is no op {op!r}; there are {', '.join(sorted(names))}.")
        known = names[op] if op else every
        if backend not in (*known, AUTO):
            raise ConfigError(
                f"{SETTING}: {op or 'no op'} {'has no' if op else 'has a'} backend {backend!r}; "
                f"write {AUTO}, {', '.join(known)}."
            )


@cache
def _import_all_ops() -> None:
    """Import every folder of this package, so that the ops are known."""
    import mmblocks.ops

    for module in pkgutil.iter_modules(mmblocks.ops.__path__):
        if module.ispkg:
            import_module(f"mmblocks.ops.{module.name}")
