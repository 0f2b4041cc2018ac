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
from mmblocks.registry import ComponentInfo, Registry
from mmblocks.settings import format_suggestion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", help="encoder, projector, pooling, ..., or system; all kinds without it")


def run(args: argparse.Namespace) -> int:
    for kind in [args.kind] if args.kind else [*list_registries(), "system"]:
        lines = list_systems() if kind == "system" else list_components(find_registry(kind))
        print("\n".join([f"{kind}:", *(f"  {line}" for line in lines)]))
    return 0


def list_systems() -> Iterator[str]:
    """One line per system: name, what it is, its sizes."""
    width = max(map(len, SYSTEMS))
    return (f"{s.name:{width}}  {s.summary}: {', '.join(s.sizes)}" for s in SYSTEMS.values())


def list_registries() -> dict[str, Registry[Any]]:
    """Every registry by kind, data sources included."""
    return {**REGISTRIES, sources.kind: sources}


def find_registry(kind: str) -> Registry[Any]:
    """The registry of a kind. Raises `ConfigError` for an unknown one."""
    if kind not in list_registries():
        raise ConfigError(
            f"no kind of component is called {kind!r}.{format_suggestion(kind, [*list_registries(), 'system'])}"
        )
    return list_registries()[kind]


def list_components(registry: Registry[Any]) -> Iterator[str]:
    """One line per component: name, what it is a preset of or its summary, source."""
    found = [registry.find_info(name) for name in registry]
    names = max((len(f.name) for f in found), default=0)
    room = max(40, shutil.get_terminal_size((150, 24)).columns - names - 8)
    for f in found:
        summary, source = f"preset of {f.preset_of}" if f.preset_of else f.summary, _find_source(registry, f)
        yield f"{f.name:{names}}  {_cut(summary, room - len(source))}  {source}".rstrip()


def _find_source(registry: Registry[Any], found: ComponentInfo) -> str:
    """A preset's source is that of what it is a preset of."""
    return found.source or (_find_source(registry, registry.find_info(found.preset_of)) if found.preset_of else "")


def _cut(text: str, room: int) -> str:
    return text if len(text) <= max(room, 20) else f"{text[: max(room, 20) - 3].rstrip()}..."
