"""Sweeps: one run per combination of values, by Hydra's multirun and whichever launcher is installed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from mmblocks.conf.assemble import compose, search_path
from mmblocks.conf.faults import refusal
from mmblocks.conf.files import find_recipe


def run_sweep(recipe: str, overrides: Sequence[str]) -> int:
    """Train once per combination of the overrides' values, e.g. `model/projector=mlp,linear seed=0,1`; the exit code.

    Each job has a folder of its own, `<out>/sweep/<date>/<number>`. `hydra/launcher=...` and other overrides of
    Hydra's own pass through. Every value is composed once before anything starts, so a typo costs no run.
    """
    rehearse(recipe, overrides)
    return subprocess.run([sys.executable, "-m", "mmblocks.conf.sweep", *sweep_arguments(recipe, overrides)]).returncode


def sweep_arguments(recipe: str, overrides: Sequence[str]) -> list[str]:
    """The command line of `mmblocks.conf.sweep`."""
    found = find_recipe(recipe)
    place = "hydra.sweep.dir=${out}/sweep/${now:%Y-%m-%d_%H-%M-%S}"
    own = [] if any(o.startswith("hydra.sweep.dir=") for o in overrides) else [place]
    where = ["--config-dir", str(found.path.parent), "--config-name", found.path.stem]
    return [*where, "--multirun", *own, f"hydra.job.name={found.path.stem}", search_path(), *overrides]


def rehearse(recipe: str, overrides: Sequence[str]) -> None:
    """Compose each value of each swept override, the others at their first. Raises `ConfigError`."""
    try:
        parsed = OverridesParser.create().parse_overrides([o for o in overrides if not o.startswith("hydra")])
    except OverrideParseException as error:
        raise refusal(recipe, error) from error
    values = [_values(o) for o in parsed]
    first = [v[0] for v in values if v]
    for i, options in enumerate(v for v in values if v):
        for option in options if len(options) > 1 else []:
            compose(recipe, [*first[:i], option, *first[i + 1 :]])
    compose(recipe, first)


def _values(override: Override) -> list[str]:
    """An override once per value; none for sweeps that only a sweeper can spell out (intervals, globs)."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not (override.is_choice_sweep() or override.is_range_sweep()):
        return []
    key = override.get_key_element()
    return [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), 64)]
