"""Tokens, compute and memory of a recipe's model for given pictures and clips. Reads no weights and no network.

  mmblocks plan RECIPE image=1000x700 image=384x384 video=1280x720@30s
  mmblocks plan llava_next/vicuna_7b model/projector=gated image=1000x700 --json

Sizes are WIDTHxHEIGHT in pixels; a clip says its seconds, and its frames per second if they are not 30
(video=1280x720@30s@25fps). All visuals stand in one conversation. Other words are overrides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmblocks.model.budget import Budget

MEDIA = ("image=", "video=")
DEFAULT_MEDIA = ("image=1000x700",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file), or a system (`mmblocks list system`)"
    )
    parser.add_argument(
        "words", nargs="*", help=f"pictures and clips ({DEFAULT_MEDIA[0]} when there are none), and overrides"
    )
    parser.add_argument("--text", type=int, default=64, metavar="TOKENS", help="text tokens beside the visuals (64)")
    parser.add_argument("--json", action="store_true", help="the same as json")


def run(args: argparse.Namespace) -> int:
    from mmblocks import conf
    from mmblocks.model.budget import plan, visual_shape

    media = [word for word in args.words if word.startswith(MEDIA)]
    raw = conf.compose_for_planning(args.recipe, [word for word in args.words if not word.startswith(MEDIA)])
    shapes = [visual_shape(word) for word in media or DEFAULT_MEDIA]
    stages = {stage["name"]: list(stage["train"]) for stage in raw.get("stages", [])}
    budget = plan(raw["model"], shapes, text_tokens=args.text, stages=stages)
    print(json.dumps(budget.plain(), indent=2) if args.json else "\n".join(report(raw["model"], budget)))
    return 0


# A page for people --------------------------------------------------------------------------------------------------


def report(model: Mapping[str, Any], budget: Budget) -> Iterator[str]:
    """The budget as aligned tables."""
    yield from _names(model)
    yield ""
    yield from _aligned([("visual", "pixels", "scenario", "views", "tokens"), *_visual_rows(budget)])
    yield ""
    yield from _aligned([("part", "parameters", "weights (bf16)", "prefill"), *_part_rows(budget)])
    yield ""
    yield from _aligned(list(_memory_rows(budget)))
    yield from (f"note: {note}" for note in budget.notes)
    if not budget.fits:
        yield (
            f"too long: {budget.sequence_tokens} tokens, the backbone takes {budget.max_tokens}; show fewer or smaller "
            "visuals, or raise model.backbone.max_tokens."
        )


def _names(model: Mapping[str, Any]) -> Iterator[str]:
    from mmblocks.registry import split

    names = {kind: split(model[kind])[0] for kind in ("encoder", "projector", "pooling", "backbone")}
    visual = ", ".join(f"{scenario} {split(spec)[0]}" for scenario, spec in model["tokenizer"].items())
    yield f"{names['encoder']} -> {names['projector']} -> {visual} (pooling {names['pooling']}) -> {names['backbone']}"


def _visual_rows(budget: Budget) -> Iterator[tuple[str, ...]]:
    for visual in budget.visuals:
        frames = f", {visual.num_frames} frames" if visual.kind == "video" else ""
        pixels = f"{visual.size.width}x{visual.size.height}{frames}"
        yield visual.kind, pixels, visual.scenario, str(visual.views), str(visual.tokens)
    if budget.told_tokens:
        yield "told with them", "", "", "", str(budget.told_tokens)
    yield "text", "", "", "", str(budget.text_tokens)
    yield "sequence", "", "", str(budget.views), f"{budget.sequence_tokens} of {budget.max_tokens}"


def _part_rows(budget: Budget) -> Iterator[tuple[str, ...]]:
    for part, count in budget.parameters.items():
        flops = budget.flops.get(part, 0)
        yield part, scaled(count), scaled(2 * count, "B"), scaled(flops, "FLOP")
        if part == "backbone":
            yield "  attention", "", "", scaled(budget.flops.get("attention"), "FLOP")
            yield "  last row's head", "", "", scaled(budget.flops.get("head"), "FLOP")
    known = [n for part, n in budget.flops.items() if part != "attention"]
    total = None if None in known else sum(n or 0 for n in known)
    yield "all", scaled(sum(budget.parameters.values())), scaled(budget.weight_bytes, "B"), scaled(total, "FLOP")


def _memory_rows(budget: Budget) -> Iterator[tuple[str, ...]]:
    yield "KV cache (bf16)", scaled(budget.kv_cache_bytes, "B")
    for stage, size in budget.training_bytes.items():
        yield f"training {stage}: weights, gradients, Adam", scaled(size, "B")


def scaled(number: float | None, unit: str = "") -> str:
    """A number in thousands, millions, ...: 397745440 -> '397.7 M'."""
    if number is None:
        return "unknown"
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {prefix}{unit}"
    return f"{number} {unit}".rstrip()


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows with the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:{widths[0]}}", *cells]).rstrip()
