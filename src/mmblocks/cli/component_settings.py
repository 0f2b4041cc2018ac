"""Settings of components, read from their files as text: what presets fix, and the defaults of constructors.

Nothing is imported, so `mmblocks list` stays fast. A value that is no literal is left out.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmblocks.registry import Registry


def read_preset_settings(registry: Registry[Any], name: str) -> dict[str, Any]:
    """What a preset fixes, with what the presets fix that it is made from; empty for a component that is no preset."""
    base = registry.find_info(name).preset_of
    return {**read_preset_settings(registry, base), **_read_file(registry, name).get(name, {})} if base else {}


def list_default_settings(registry: Registry[Any], name: str) -> dict[str, Any]:
    """Every setting of a component or preset that has a value in the files."""
    root = find_root(registry, name)
    return {**_read_file(registry, root).get(root, {}), **read_preset_settings(registry, name)}


def find_root(registry: Registry[Any], name: str) -> str:
    """The component that a preset is made from in the end; a component itself."""
    base = registry.find_info(name).preset_of
    return find_root(registry, base) if base else name


def _read_file(registry: Registry[Any], name: str) -> Mapping[str, Mapping[str, Any]]:
    """Settings of all components in the file of this one; empty where the file belongs to another package."""
    package, _, stem = registry.find_info(name).module.rpartition(".")
    spec = importlib.util.find_spec(package) if package == registry.package else None
    folders = (spec.submodule_search_locations or []) if spec else []
    return _read_components(Path(folders[0]) / f"{stem}.py") if folders else {}


@lru_cache
def _read_components(path: Path) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr):
            for name in _names_given(node.value, "preset"):
                found[name] = _literals({k.arg: k.value for k in node.value.keywords if k.arg != "of"})  # type: ignore[attr-defined]
        elif isinstance(node, ast.ClassDef):
            for name in (name for call in node.decorator_list for name in _names_given(call, "register")):
                found[name] = _literals(_constructor_defaults(node))
    return found


def _names_given(node: ast.expr, method: str) -> Iterator[str]:
    """The name in `x.register("name", ...)` or `x.preset("name", ...)`; nothing where it is another expression."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
        yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _constructor_defaults(node: ast.ClassDef) -> dict[str | None, ast.expr]:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            with_default = method.args.args[len(method.args.args) - len(method.args.defaults) :]
            return {a.arg: value for a, value in zip(with_default, method.args.defaults, strict=True)}
    return {}


def _literals(written: Mapping[str | None, ast.expr]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, expression in written.items():
        try:
            values[str(name)] = ast.literal_eval(expression)
        except ValueError:
            continue
    return values
