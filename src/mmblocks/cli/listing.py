"""Components and whole systems that can be combined, by kind. No component is imported to show them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from typing import Any

from mmblocks.components import REGISTRIES
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.model.systems import SYSTEMS
from mmblocks.registry import Found, Registry
from mmblocks.settings import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", help="encoder, projector, pooling, ..., or system; all kinds without it")


def run(args: argparse.Namespace) -> int:
    for kind in [args.kind] if args.kind else [*kinds(), "system"]:
        lines = systems() if kind == "system" else table(registry_of(kind))
        print("\n".join([f"{kind}:", *(f"  {line}" for line in lines)]))
    return 0


def systems() -> Iterator[str]:
    """One line per system: name, what it is, its sizes."""
    width = max(map(len, SYSTEMS))
    return (f"{s.name:{width}}  {s.summary}: {', '.join(s.sizes)}" for s in SYSTEMS.values())


def kinds() -> dict[str, Registry[Any]]:
    """Every registry by kind, data sources included."""
    return {**REGISTRIES, sources.kind: sources}


def registry_of(kind: str) -> Registry[Any]:
    """The registry of a kind. Raises `ConfigError` for an unknown one."""
    if kind not in kinds():
        raise ConfigError(f"no kind of component is called {kind!r}.{did_you_mean(kind, [*kinds(), 'system'])}")
    return kinds()[kind]


def table(registry: Registry[Any]) -> Iterator[str]:
    """One line per component: name, what it is a preset of or its summary, source."""
    found = [registry.about(name) for name in registry]
    names = max((len(f.name) for f in found), default=0)
    room = max(40, shutil.get_terminal_size((150, 24)).columns - names - 8)
    for f in found:
        summary, source = f"preset of {f.of}" if f.of else f.summary, _source(registry, f)
        yield f"{f.name:{names}}  {_cut(summary, room - len(source))}  {source}".rstrip()


def _source(registry: Registry[Any], found: Found) -> str:
    """A preset's source is that of what it is a preset of."""
    return found.source or (_source(registry, registry.about(found.of)) if found.of else "")


def _cut(text: str, room: int) -> str:
    return text if len(text) <= max(room, 20) else f"{text[: max(room, 20) - 3].rstrip()}..."
