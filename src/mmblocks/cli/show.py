"""One component: its settings with types and defaults, what the composition supplies, its source and file."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Any

from mmblocks.cli.listing import registry_of
from mmblocks.registry import Entry, Registry
from mmblocks.settings import REQUIRED, Setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", help="encoder, projector, pooling, tokenizer, backbone, template or source")
    parser.add_argument("name", help="a name from `mmblocks list KIND`")


def run(args: argparse.Namespace) -> int:
    print("\n".join(described(registry_of(args.kind), args.name)))
    return 0


def described(registry: Registry[Any], name: str) -> Iterator[str]:
    """A component as lines of text."""
    entry = registry[name]
    yield f"{registry.kind} {name}" + (f", a preset of {entry.of}" if entry.of else "")
    yield ""
    yield from (f"  {line}".rstrip() for line in (inspect.getdoc(entry.builder) or "").splitlines())
    yield ""
    yield from _settings(registry.schema(name))
    if wired := sorted(registry.wants(name)):
        yield f"wired:    {', '.join(wired)} (from its neighbours, never set by hand)"
    yield f"source:   {entry.source}"
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


def _file(entry: Entry[Any]) -> str:
    return inspect.getsourcefile(entry.builder) or entry.builder.__module__
