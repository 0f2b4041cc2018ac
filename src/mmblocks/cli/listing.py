"""Components and complete systems, by kind. No component is imported to list them."""

import argparse
import shutil
from collections import ChainMap
from collections.abc import Iterator
from typing import Any

from mmblocks.components import REGISTRIES
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.model.systems import SYSTEMS
from mmblocks.registry import Registry
from mmblocks.settings import format_suggestion, format_value


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
    """Every registry by kind, data sources and tasks of evaluation included."""
    from mmblocks.eval.tasks import tasks  # other commands do not need it

    return {**REGISTRIES, sources.kind: sources, tasks.kind: tasks}


def find_registry(kind: str) -> Registry[Any]:
    """The registry of a kind. Raises `ConfigError` for an unknown one."""
    if kind not in list_registries():
        raise ConfigError(
            f"no kind of component is called {kind!r}.{format_suggestion(kind, [*list_registries(), 'system'])}"
        )
    return list_registries()[kind]


def list_components(registry: Registry[Any]) -> Iterator[str]:
    """One line per component: name, size, and what it is."""
    rows = [(name, format_size(registry, name), format_summary(registry, name)) for name in registry]
    names, sizes = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    room = max(40, shutil.get_terminal_size((150, 24)).columns - names - sizes - 6)
    for name, size, summary in rows:
        shown = summary if len(summary) <= room else f"{summary[: room - 3].rstrip()}..."
        yield "  ".join([f"{name:{names}}", *([f"{size:{sizes}}"] if sizes else []), shown])


def format_size(registry: Registry[Any], name: str) -> str:
    """The size of an encoder or a backbone as its settings give it; empty where they do not, and for other kinds."""
    infos = registry.find_infos(name) if registry.kind in ("encoder", "backbone") else []
    settings = dict(ChainMap(*(dict(info.settings) for info in reversed(infos))))
    px, depth, dim = settings.get("image_px", settings.get("view_px")), settings.get("depth"), settings.get("dim")
    layers = f"{depth} layers x {dim}" if depth and dim else ""
    return ", ".join(part for part in (f"{px} px" if px else "", layers) if part)


def format_summary(registry: Registry[Any], name: str) -> str:
    """What a component is: the first line of its docstring; for a preset its checkpoint, or what it sets differently."""
    root, *presets = registry.find_infos(name)
    if not presets:
        return root.summary
    settings = dict(ChainMap(*(dict(info.settings) for info in reversed(presets))))
    checkpoint = settings.get("model_name") or settings.get("checkpoint")
    if checkpoint:
        return f"{root.name}, weights of {checkpoint}"
    values = ", ".join(f"{key}={_format_value(value)}" for key, value in settings.items())
    return f"{root.name} with {values}" if values else f"the same as {root.name}"


def _format_value(value: object) -> str:
    """The value of a setting; for a component inside it only the name."""
    if isinstance(value, tuple | list):
        return f"({', '.join(v if isinstance(v, str) else _format_value(v) for v in value)})"
    return str(value["name"]) if isinstance(value, dict) and "name" in value else format_value(value)
