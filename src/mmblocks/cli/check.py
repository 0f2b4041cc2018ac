"""Every reason why a recipe or a system cannot run, at once. Reads no weights and no network.

mmblocks check RECIPE model/projector=identity model.encoder.layer=-3
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmblocks.model.checks.faults import Fault, Missing

NOT_HERE = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file), or a system (`mmblocks list system`)"
    )
    parser.add_argument("overrides", nargs="*", help="GROUP=NAME or KEY=VALUE")


def run(args: argparse.Namespace) -> int:
    """0: it can run, 1: it has faults, 3: it has none, and this machine lacks what no run fetches."""
    from mmblocks.model.checks.faults import Missing
    from mmblocks.pretrained import nothing_fetched

    with nothing_fetched():
        raw, found = _found(args)
    missing = [fault for fault in found if isinstance(fault, Missing)]
    wrong = [fault for fault in found if not isinstance(fault, Missing)]
    lacks = any(not one.fetched for one in missing)
    print(refusal(args.recipe, wrong) if wrong else approval(args.recipe, raw, "no faults" if lacks else "ok"))
    if missing:
        print("\n".join(_lacking(missing)))
    return 1 if wrong else NOT_HERE if lacks else 0


def _found(args: argparse.Namespace) -> tuple[Mapping[str, Any], list[Fault]]:
    from mmblocks.conf.assemble import compose_unchecked
    from mmblocks.model.checks.composition import faults
    from mmblocks.model.missing import missing_tokenizers, missing_weights
    from mmblocks.train.checks.run import check_run

    raw = compose_unchecked(args.recipe, args.overrides)
    if "stages" not in raw:
        return raw, [*faults(raw["model"]), *missing_tokenizers(raw["model"]), *missing_weights(raw["model"])]
    weights = missing_weights(raw.get("model")) if raw.get("weights") == "pretrained" else []
    return raw, [*check_run(raw), *missing_tokenizers(raw.get("model")), *weights]


def _lacking(missing: list[Missing]) -> Iterator[str]:
    """What is not on this machine, first what has to be got by hand."""
    titles = {False: "missing on this machine", True: "not on this machine yet, fetched by a run with a network"}
    for fetched, title in titles.items():
        if lines := [f"  {one}" for one in missing if one.fetched == fetched]:
            yield f"{title}:"
            yield from lines


def refusal(recipe: str, found: list[Fault]) -> str:
    """All faults, one per line, ready to be read."""
    count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
    return "\n".join([f"{recipe}: {count}", *(f"  {fault}" for fault in found)])


def approval(recipe: str, raw: Mapping[str, Any], found: str) -> str:
    """A line that says what was found good."""
    from mmblocks.registry import split

    model = raw["model"]
    names = [split(model[kind])[0] for kind in ("encoder", "projector", "backbone")]
    stages = ", ".join(stage["name"] for stage in raw.get("stages", []))
    return f"{found}: {recipe}: {' -> '.join(names)}{stages and f'; stages {stages}'}"
