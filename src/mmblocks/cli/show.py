"""One component: its settings with types and defaults, its shape and size, its source, what verifies it, and its file.

mmblocks show projector mlp
mmblocks show system llava_next      a complete system: its components in each size
"""

import argparse
import inspect
from collections.abc import Iterator
from typing import Any

from mmblocks.cli.facts import list_facts
from mmblocks.cli.listing import find_registry
from mmblocks.model.systems import find_system
from mmblocks.registry import Registry
from mmblocks.settings import REQUIRED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", help="encoder, projector, pooling, tokenizer, backbone, template, source or system")
    parser.add_argument("name", help="a name from `mmblocks list KIND`")


def run(args: argparse.Namespace) -> int:
    lines = format_system(args.name) if args.kind == "system" else format_component(find_registry(args.kind), args.name)
    print("\n".join(lines))
    return 0


def format_system(name: str) -> Iterator[str]:
    """A system as lines of text: the components of the named size, or of all sizes."""
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
    settings = registry.list_settings(name)
    yield "settings:" if settings else "settings: none"
    names, types = (max((len(getattr(s, key)) for s in settings), default=0) for key in ("name", "type_name"))
    for s in settings:
        default = "required" if s.default is REQUIRED else f"= {s.default!r}"
        yield f"  {s.name:{names}}  {s.type_name:{types}}  {default}"
    if wired := sorted(registry.find_wired_arguments(name)):
        yield f"wired:    {', '.join(wired)} (from its neighbours, never set by hand)"
    yield from (f"{fact + ':':9} {value}" for fact, value in list_facts(registry, name).items())
    yield f"source:   {entry.source}"
    if entry.verified_against:
        yield f"verified: {entry.verified_against}"
    yield f"file:     {inspect.getsourcefile(entry.builder) or entry.builder.__module__}"
