"""Every reason why a recipe or a system cannot run, at once. Reads no weights and no network.

mmblocks check RECIPE model/projector=identity model.encoder.layer=-3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmblocks.faults import Fault

EXIT_MISSING = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file), or a system (`mmblocks list system`)"
    )
    parser.add_argument("overrides", nargs="*", help="GROUP=NAME or KEY=VALUE")


def run(args: argparse.Namespace) -> int:
    """0: it can run, 1: it has faults, 3: it has none, and this machine lacks what no run fetches."""
    from mmblocks.faults import format_faults
    from mmblocks.pretrained import forbid_fetching

    with forbid_fetching():
        raw, faults = _collect_faults(args)
    severities = ("error", "missing", "fetchable", "warning")
    errors, missing, fetchable, warnings = ([f for f in faults if f.severity == severity] for severity in severities)
    if errors:
        count = "1 fault" if len(errors) == 1 else f"{len(errors)} faults"
        print(format_faults(errors, f"{args.recipe}: {count}"))
    else:
        print(format_approval(args.recipe, raw, "no faults" if missing else "ok"))
    if warnings:
        print(format_faults(warnings, "WARNING"))
    if missing:
        print(format_faults(missing, "missing on this machine"))
    if fetchable:
        print(format_faults(fetchable, "not on this machine yet, fetched by a run with a network"))
    return 1 if errors else EXIT_MISSING if missing else 0


def _collect_faults(args: argparse.Namespace) -> tuple[Mapping[str, Any], list[Fault]]:
    from mmblocks.conf.assemble import compose_unchecked
    from mmblocks.model.checks.composition import find_faults
    from mmblocks.model.missing import find_missing_tokenizers, find_missing_weights
    from mmblocks.train.checks.run import check_run
    from mmblocks.train.starting_model import adopt_offline

    raw = adopt_offline(compose_unchecked(args.recipe, args.overrides))
    is_run, model = "stages" in raw, raw.get("model")
    faults = check_run(raw) if is_run else find_faults(raw["model"])
    if "backbone" not in raw.get("from_weights", ()):  # its text tokenizer comes with the weights
        faults += find_missing_tokenizers(model)
    return raw, faults + ([] if is_run and raw.get("weights") != "pretrained" else find_missing_weights(model))


def format_approval(recipe: str, raw: Mapping[str, Any], found: str) -> str:
    """A line that says what was found good."""
    from mmblocks.registry import split_spec

    model = raw["model"]
    names = [split_spec(model[kind])[0] for kind in ("encoder", "projector", "backbone")]
    stages = ", ".join(stage["name"] for stage in raw.get("stages", []))
    return f"{found}: {recipe}: {' -> '.join(names)}{stages and f'; stages {stages}'}"
