"""The only door to Hydra: recipes and overrides in, a plain dict out. Nothing below this package knows Hydra."""

from mmblocks.conf.assemble import as_yaml, compose, compose_for_planning
from mmblocks.conf.files import recipes
from mmblocks.conf.groups import GROUPS, register_groups
from mmblocks.conf.launch import prepare_sweep, run_sweep

__all__ = [
    "GROUPS",
    "as_yaml",
    "compose",
    "compose_for_planning",
    "prepare_sweep",
    "recipes",
    "register_groups",
    "run_sweep",
]
