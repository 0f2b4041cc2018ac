"""Which way an op is computed: the first that has no reasons against the inputs, or the one that was asked for.

`MMBLOCKS_OPS` is "auto", the name of a way ("reference"), or ways by op ("attention=varlen,gather_lerp=reference");
`using` says the same for a block of code. An op without a way of that name goes on choosing by itself.
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
from typing import Any

from mmblocks.errors import ConfigError

log = logging.getLogger(__name__)
AUTO = "auto"
REFERENCE = "reference"
SETTING = "MMBLOCKS_OPS"
OPS: dict[str, Op] = {}
_requested: ContextVar[Mapping[str, str] | None] = ContextVar("mmblocks_ops", default=None)


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute an op. `reasons_against` takes the same inputs as `run` and is empty where it can run.

    here: what speaks against it on this machine, whatever the inputs; `mmblocks doctor` shows it.
    """

    name: str
    run: Callable[..., Any]
    reasons_against: Callable[..., list[str]]
    unavailable_reasons: Callable[[], list[str]] = list


@dataclass(slots=True)
class Op:
    """An op and its ways, the fastest first and the reference, which always runs, last.

    order: names of all ways for given inputs, where which is the fastest depends on these.
    """

    name: str
    backends: Sequence[Backend]
    order: Callable[..., Sequence[str]] | None = None
    _logged: set[tuple[str, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        assert self.backends[-1].name == REFERENCE
        OPS[self.name] = self

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """What the chosen way makes of the inputs."""
        return self.choose_backend(*inputs, **settings).run(*inputs, **settings)

    def choose_backend(self, *inputs: Any, **settings: Any) -> Backend:
        """The way that runs these inputs. Raises `ConfigError` with its reasons where the one asked for cannot."""
        wanted = find_requested_backend(self.name)
        named = next((backend for backend in self.backends if backend.name == wanted), None)
        if named is not None:
            if reasons := named.reasons_against(*inputs, **settings):
                raise ConfigError(
                    f"{self.name}: {named.name!r} was asked for and cannot run here: {'; '.join(reasons)}. "
                    f"Leave the choice to mmblocks ({SETTING}=auto) or ask for {REFERENCE!r}."
                )
            return named
        passed: list[str] = []
        for way in self._ordered(*inputs, **settings):
            reasons = way.reasons_against(*inputs, **settings)
            if not reasons:
                self._tell(way, passed)
                return way
            passed.append(f"{way.name}: {'; '.join(reasons)}")
        raise AssertionError("a reference has no reasons against it")

    def _ordered(self, *inputs: Any, **settings: Any) -> Sequence[Backend]:
        if self.order is None:
            return self.backends
        backends = {backend.name: backend for backend in self.backends}
        return [backends[name] for name in self.order(*inputs, **settings)]

    def _tell(self, backend: Backend, passed: list[str]) -> None:
        """Log a choice once, with what stands against the faster ways."""
        if (told := (backend.name, *passed)) not in self._logged:
            self._logged.add(told)
            log.info("%s: %s%s", self.name, backend.name, "".join(f"\n  not {reason}" for reason in passed))


def list_ops() -> list[Op]:
    """Every op, by name."""
    _import_all_ops()
    return [OPS[name] for name in sorted(OPS)]


def find_requested_backend(op: str) -> str:
    """The name asked for an op, `AUTO` when none was."""
    asked = _requested.get()
    if asked is None:
        asked = _parse_setting(os.environ.get(SETTING, AUTO))
    return asked.get(op, asked.get("", AUTO))


@contextmanager
def use_backends(every: str = AUTO, **ops: str) -> Iterator[None]:
    """Ask for ways in a block of code: `using("reference")`, `using(attention="varlen")`. Other ops choose themselves.

    Raises `ConfigError` for an op or a way that does not exist.
    """
    asked = {"": every, **ops}
    _require_known_backends(asked)
    token = _requested.set(asked)
    try:
        yield
    finally:
        _requested.reset(token)


@cache
def _parse_setting(text: str) -> dict[str, str]:
    pairs = [word.strip().rpartition("=") for word in text.split(",") if word.strip()]
    asked = {op: backend for op, _, backend in pairs}
    _require_known_backends(asked)
    return asked


def _require_known_backends(asked: Mapping[str, str]) -> None:
    _import_all_ops()
    names = {op.name: [backend.name for backend in op.backends] for op in OPS.values()}
    every = sorted({way for backends in names.values() for way in backends})
    for op, way in asked.items():
        if op and op not in names:
            raise ConfigError(f"{SETTING}: there is no op {op!r}; there are {', '.join(sorted(names))}.")
        known = names[op] if op else every
        if way not in (*known, AUTO):
            raise ConfigError(
                f"{SETTING}: {op or 'no op'} {'has no' if op else 'has a'} way {way!r}; write {AUTO}, {', '.join(known)}."
            )


@cache
def _import_all_ops() -> None:
    """Import every folder of this package, so that the ops are known."""
    import mmblocks.ops

    for module in pkgutil.iter_modules(mmblocks.ops.__path__):
        if module.ispkg:
            import_module(f"mmblocks.ops.{module.name}")
