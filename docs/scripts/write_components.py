"""Write docs/reference/components.md from the registries: a component's signature and docstring are its documentation.

python docs/scripts/write_components.py
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmblocks.cli.facts import list_facts
from mmblocks.components import REGISTRIES
from mmblocks.data.sources import sources
from mmblocks.registry import Registry
from mmblocks.settings import REQUIRED, Setting

PAGE = Path(__file__).parents[1] / "reference/components.md"
HEAD = """\
# Components

All components of mmblocks with their settings. In code, write `projectors.build("mlp", depth=3)`; in recipes and overrides,
`model/projector=mlp model.projector.depth=3`. `mmblocks list` and `mmblocks show KIND NAME` print the same on the command line,
with the components of other packages that are installed.

`python docs/scripts/write_components.py` writes this page from the docstrings.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown: every kind, its components, its presets."""
    kinds = {**REGISTRIES, sources.kind: sources}
    return "\n".join([HEAD, *(line for registry in kinds.values() for line in section(registry))])


def section(registry: Registry[Any]) -> Iterator[str]:
    own = [name for name in registry if registry.find_info(name).module.startswith("mmblocks.")]
    presets = [name for name in own if registry[name].preset_of]
    yield f"## {registry.kind.capitalize()}\n"
    for name in own:
        if name not in presets:
            yield from component(registry, name)
    if presets:
        yield f"### Presets of {registry.kind}s\n"
        yield from preset_table(registry, presets)


def component(registry: Registry[Any], name: str) -> Iterator[str]:
    entry = registry[name]
    yield f"### `{name}`\n"
    yield f"{prose(inspect.getdoc(entry.builder) or '')}\n"
    if schema := registry.list_settings(name):
        yield "| setting | type | default |\n|---|---|---|"
        yield from (row(setting) for setting in schema)
        yield ""
    yield "".join(f"{said.capitalize()}: {value}  \n" for said, value in told(registry, name).items())


def told(registry: Registry[Any], name: str) -> dict[str, str]:
    """What stands below a component's settings."""
    entry = registry[name]
    oracle = {"verified against": entry.verified_against} if entry.verified_against else {}
    return {**list_facts(registry, name), "source": linked(entry.source), **oracle}


def preset_table(registry: Registry[Any], presets: list[str]) -> Iterator[str]:
    yield "| preset | of | settings |\n|---|---|---|"
    for name in presets:
        base = registry[str(registry[name].preset_of)].settings
        fixed = {k: v for k, v in registry[name].settings.items() if base.get(k) != v}
        settings = ", ".join(f"{k}={v!r}" for k, v in fixed.items())
        yield f"| `{name}` | `{registry[name].preset_of}` | {cell(settings)} |"
    yield ""


def row(setting: Setting) -> str:
    default = "required" if setting.default is REQUIRED else cell(repr(setting.default))
    return f"| `{setting.name}` | {cell(setting.type_name)} | {default} |"


def cell(text: str) -> str:
    """Text as code inside a table, where `|` would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def prose(text: str) -> str:
    """A docstring as Markdown: `<` outside of code is no tag."""
    return "".join(
        part if code else part.replace("<", "\\<")
        for code, part in ((i % 2, part) for i, part in enumerate(re.split(r"(`[^`]*`)", text)))
    )


def linked(source: str) -> str:
    return f"<{source}>" if source.startswith("http") else source


if __name__ == "__main__":
    main()
