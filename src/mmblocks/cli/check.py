"""Every reason why a recipe or a system cannot run, at once. Reads no weights and no network.

mmblocks check RECIPE model/projector=identity model.encoder.layer=-3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmblocks.model.faults import Fault


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file), or a system (`mmblocks list system`)"
    )
    parser.add_argument("overrides", nargs="*", help="GROUP=NAME or KEY=VALUE")


def run(args: argparse.Namespace) -> int:
    from mmblocks.conf.assemble import compose_unchecked
    from mmblocks.model.check import faults
    from mmblocks.train.check import check_run

    raw = compose_unchecked(args.recipe, args.overrides)
    found = check_run(raw) if "stages" in raw else faults(raw["model"])
    print(refusal(args.recipe, found) if found else approval(args.recipe, raw))
    return 1 if found else 0


def refusal(recipe: str, found: list[Fault]) -> str:
    """All faults, one per line, ready to be read."""
    count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
    return "\n".join([f"{recipe}: {count}", *(f"  {fault}" for fault in found)])


def approval(recipe: str, raw: Mapping[str, Any]) -> str:
    """A line that says what was found good."""
    from mmblocks.registry import split

    model = raw["model"]
    names = [split(model[kind])[0] for kind in ("encoder", "projector", "backbone")]
    stages = ", ".join(stage["name"] for stage in raw.get("stages", []))
    return f"ok: {recipe}: {' -> '.join(names)}{stages and f'; stages {stages}'}"
