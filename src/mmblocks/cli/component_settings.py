"""Settings of components, read from their source files as text: what presets set, and the defaults of constructors.

Nothing is imported, so `mmblocks list` stays fast. A value that is not a literal is left out.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmblocks.registry import Registry


def read_preset_settings(registry: Registry[Any], name: str) -> dict[str, object]:
    """What a preset sets, including what the presets it is based on set; empty for a component that is no preset."""
    base = registry.find_info(name).preset_of
    return {**read_preset_settings(registry, base), **_read_file(registry, name).get(name, {})} if base else {}


def list_default_settings(registry: Registry[Any], name: str) -> dict[str, object]:
    """Every setting of a component or preset that has a value in the source files."""
    root = find_root(registry, name)
    return {**_read_file(registry, root).get(root, {}), **read_preset_settings(registry, name)}


def find_root(registry: Registry[Any], name: str) -> str:
    """The component on which a preset is based; for a component its own name."""
    base = registry.find_info(name).preset_of
    return find_root(registry, base) if base else name


def _read_file(registry: Registry[Any], name: str) -> Mapping[str, Mapping[str, object]]:
    """Settings of all components in the file of this one; empty where the file belongs to another package."""
    package, _, stem = registry.find_info(name).module.rpartition(".")
    spec = importlib.util.find_spec(package) if package == registry.package else None
    folders = (spec.submodule_search_locations or []) if spec else []
    return _read_components(Path(folders[0]) / f"{stem}.py") if folders else {}


@lru_cache
def _read_components(path: Path) -> Mapping[str, Mapping[str, object]]:
    settings: dict[str, dict[str, object]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            for name in _list_registered_names(node.value, "preset"):
                keywords = {k.arg: k.value for k in node.value.keywords if k.arg not in ("of", None)}
                settings[name] = _evaluate_literals(keywords)
        elif isinstance(node, ast.ClassDef):
            for name in (name for call in node.decorator_list for name in _list_registered_names(call, "register")):
                constructors = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
                settings[name] = {}
                for arguments in (constructor.args for constructor in constructors):
                    with_default = arguments.args[len(arguments.args) - len(arguments.defaults) :]
                    defaults = {a.arg: value for a, value in zip(with_default, arguments.defaults, strict=True)}
                    settings[name] = _evaluate_literals(defaults)
    return settings


def _list_registered_names(node: ast.expr, method: str) -> Iterator[str]:
    """The name in `x.register("name", ...)` or `x.preset("name", ...)`; nothing for another expression."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
        yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _evaluate_literals(expressions: Mapping[str, ast.expr]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, expression in expressions.items():
        try:
            values[name] = ast.literal_eval(expression)
        except ValueError:
            continue
    return values
