"""The only door to Hydra: recipes and overrides in, a plain dict out. Nothing below this package knows Hydra.

The names below are read on first use, so that recipes can be listed without importing Hydra.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "GROUPS": "groups",
    "format_yaml": "assemble",
    "compose": "assemble",
    "compose_for_planning": "assemble",
    "compose_run": "assemble",
    "list_recipes": "files",
    "register_groups": "groups",
}

__all__ = ["GROUPS", "compose", "compose_for_planning", "compose_run", "format_yaml", "list_recipes", "register_groups"]

if TYPE_CHECKING:
    from mmblocks.conf.assemble import compose, compose_for_planning, compose_run, format_yaml
    from mmblocks.conf.files import list_recipes
    from mmblocks.conf.groups import GROUPS, register_groups


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmblocks.conf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmblocks.conf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
