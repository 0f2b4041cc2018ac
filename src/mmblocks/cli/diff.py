"""Differences between two runs or two models: components, shapes, visual tokens, data, stages, settings, final metrics.

  mmblocks diff runs/a runs/b
  mmblocks diff runs/a/model runs/b/model image=1000x700 --json

Only what differs is shown. Words like image=1000x700 name the images and videos for which tokens are counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmblocks.cli.model_options import MODEL_FORMS

if TYPE_CHECKING:
    from mmblocks.sweep.diff import Differences

NOTHING = "(none)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("one", help=f"folder of a run or of a sweep's trial, or a model: {MODEL_FORMS}")
    parser.add_argument("other", help="the run or model to compare with")
    parser.add_argument("visuals", nargs="*", help="images and videos to count tokens for, instead of the usual ones")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mmblocks.sweep.diff import VISUALS, find_differences

    differences = find_differences(args.one, args.other, args.visuals or VISUALS)
    if args.json:
        print(json.dumps(differences, indent=2))
    else:
        print("\n".join(format_differences(args.one, args.other, differences)))
    return 0


def format_differences(one: str, other: str, differences: Differences) -> Iterator[str]:
    """The differences as lines of text, section by section."""
    yield f"a: {one}"
    yield f"b: {other}"
    if not differences:
        yield "no difference"
    for section, entries in differences.items():
        yield f"\n{section}"
        width = max(map(len, entries))
        for key, (left, right) in entries.items():
            yield f"  {key:{width}}  {_format_value(left)} -> {_format_value(right)}"


def _format_value(value: object) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value)
