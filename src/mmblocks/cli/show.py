"""One component: its settings with types and defaults, what it makes of usual neighbours, its source, oracle and file.

mmblocks show projector mlp
mmblocks show system llava_next      a whole system: what it is made of, in each of its sizes
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Any

from mmblocks.cli.facts import list_facts
from mmblocks.cli.listing import find_registry
from mmblocks.model.systems import find_system
from mmblocks.registry import ComponentEntry, Registry
from mmblocks.settings import REQUIRED, Setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", help="encoder, projector, pooling, tokenizer, backbone, template, source or system")
    parser.add_argument("name", help="a name from `mmblocks list KIND`")


def run(args: argparse.Namespace) -> int:
    lines = format_system(args.name) if args.kind == "system" else format_component(find_registry(args.kind), args.name)
    print("\n".join(lines))
    return 0


def format_system(name: str) -> Iterator[str]:
    """A system as lines of text: the parts of the size that is named, or of all sizes."""
    system, size = find_system(name)
    yield f"system {system.name}: {system.summary}"
    for shown in [size] if "/" in name else system.sizes:
        yield f"\n{system.name}/{shown}"
        for key, (_, spec) in system.make_spec(shown).list_slots().items():
            yield f"  {key.removeprefix('model.'):22} {spec}"
    yield f"\nsource:   {system.source}"
    yield f"use:      mmblocks plan {system.name}/{size} model/projector=gated"


def format_component(registry: Registry[Any], name: str) -> Iterator[str]:
    """A component as lines of text."""
    entry = registry[name]
    yield f"{registry.kind} {name}" + (f", a preset of {entry.preset_of}" if entry.preset_of else "")
    yield ""
    yield from (f"  {line}".rstrip() for line in (inspect.getdoc(entry.builder) or "").splitlines())
    yield ""
    yield from _settings(registry.list_settings(name))
    if wired := sorted(registry.find_wired_arguments(name)):
        yield f"wired:    {', '.join(wired)} (from its neighbours, never set by hand)"
    yield from (f"{said + ':':9} {value}" for said, value in list_facts(registry, name).items())
    yield f"source:   {entry.source}"
    if entry.verified_against:
        yield f"oracle:   {entry.verified_against}"
    yield f"file:     {_file(entry)}"


def _settings(schema: tuple[Setting, ...]) -> Iterator[str]:
    if not schema:
        yield "settings: none"
        return
    yield "settings:"
    names, types = (max(map(len, column)) for column in zip(*((s.name, s.type_name) for s in schema), strict=True))
    for s in schema:
        default = "required" if s.default is REQUIRED else f"= {s.default!r}"
        yield f"  {s.name:{names}}  {s.type_name:{types}}  {default}"


def _file(entry: ComponentEntry[Any]) -> str:
    return inspect.getsourcefile(entry.builder) or entry.builder.__module__
