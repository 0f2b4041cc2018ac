"""Tokens, compute and memory of a recipe's model for given pictures and clips, or what training on given data takes.

Reads no weights and no network.

  mmblocks plan RECIPE image=1000x700 image=384x384 video=1280x720@30s
  mmblocks plan llava_next/vicuna_7b model/projector=gated image=1000x700 --json

Sizes are WIDTHxHEIGHT in pixels; a clip says its seconds, and its frames per second if they are not 30
(video=1280x720@30s@25fps). All visuals stand in one conversation. Other words are overrides.

  mmblocks plan RECIPE data=train.json ranks=64 images=photos stage=onevision
  mmblocks plan RECIPE data=recipe
  mmblocks plan RECIPE ranks=8,64 --memory
  mmblocks plan RECIPE --trains

With data, headers of its media are read and nothing else: how many tokens, views and labels its samples have, what padding
and packing make of them, how evenly the ranks are kept busy. data=FILE (several, too) is planned as the last stage would
read it, or the one that stage= names; data=recipe is what the stages of the recipe read themselves. images= and videos= are
the folders that media are relative to, ignore=KEY,KEY keys of records that may be left out, samples= how many are measured
at most (10000), cost= a saved calibration.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmblocks.cli.plan_data import WORDS, Question, page, planned
from mmblocks.cli.tables import aligned
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.model.budget import Budget

MEDIA = ("image=", "video=")
DEFAULT_MEDIA = ("image=1000x700",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file), or a system (`mmblocks list system`)"
    )
    parser.add_argument(
        "words", nargs="*", help=f"pictures and clips ({DEFAULT_MEDIA[0]} when there are none) or data, and overrides"
    )
    parser.add_argument("--text", type=int, default=64, metavar="TOKENS", help="text tokens beside the visuals (64)")
    parser.add_argument("--memory", action="store_true", help="memory of training by stage, for ranks=8,64 processes")
    parser.add_argument("--trains", action="store_true", help="what learns in each stage, how much and how fast")
    parser.add_argument("--json", action="store_true", help="the same as json")


def run(args: argparse.Namespace) -> int:
    from mmblocks.pretrained import nothing_fetched

    with nothing_fetched():
        return _plan(args)


def _plan(args: argparse.Namespace) -> int:
    from mmblocks import conf

    media = [word for word in args.words if word.startswith(MEDIA)]
    about_data = [word for word in args.words if word.startswith(WORDS)]
    raw = conf.compose_for_planning(args.recipe, [w for w in args.words if w not in media and w not in about_data])
    if args.memory:
        return _plan_memory(raw, about_data, as_json=args.json)
    if args.trains:
        return _plan_trains(raw, as_json=args.json)
    if not about_data:
        return _plan_media(raw, media, args)
    question = Question.of(about_data)
    if media or not question.data:
        wrong = f"{media[0]} is a picture or clip" if media else f"{about_data[0]} is about data"
        raise ConfigError(
            f"{wrong}; write either pictures and clips, or data=FILE (or data=recipe) and words about it."
        )
    return _plan_data(raw, question, as_json=args.json)


def _plan_media(raw: Mapping[str, Any], media: Sequence[str], args: argparse.Namespace) -> int:
    from mmblocks.model.budget import plan, visual_shape

    shapes = [visual_shape(word) for word in media or DEFAULT_MEDIA]
    stages = {stage["name"]: list(stage["train"]) for stage in raw.get("stages", [])}
    budget = plan(raw["model"], shapes, text_tokens=args.text, stages=stages)
    print(json.dumps(budget.plain(), indent=2) if args.json else "\n".join(report(raw["model"], budget)))
    return 0


def _plan_trains(raw: Mapping[str, Any], *, as_json: bool) -> int:
    from mmblocks.train.reports.parameter_table import as_text, tables_of

    if not raw.get("stages"):
        raise ConfigError("--trains is about training, and a system has no stages; name a recipe (`mmblocks recipes`).")
    tables = tables_of(raw)
    if as_json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in tables.items()}, indent=2))
    else:
        print("\n\n".join(f"{name}\n{as_text(rows)}" for name, rows in tables.items()))
    return 0


def _plan_memory(raw: Mapping[str, Any], words: Sequence[str], *, as_json: bool) -> int:
    from mmblocks.cli.memory_report import memory_of, memory_page, ranks_in

    found = memory_of(raw, ranks_in(words))
    plain = {name: [memory.plain() for memory in rows] for name, rows in found.items()}
    print(json.dumps(plain, indent=2) if as_json else "\n".join(memory_page(found)))
    return 0


def _plan_data(raw: Mapping[str, Any], question: Question, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([found.plain() for found in planned(raw, question)], indent=2))
        return 0
    for number, found in enumerate(planned(raw, question)):
        print("\n".join(["\n"] * (number > 0) + list(page(found))))
    return 0


# A page for people --------------------------------------------------------------------------------------------------


def report(model: Mapping[str, Any], budget: Budget) -> Iterator[str]:
    """The budget as aligned tables."""
    yield from _names(model)
    yield ""
    yield from aligned([("visual", "pixels", "scenario", "views", "tokens"), *_visual_rows(budget)])
    yield ""
    yield from aligned([("part", "parameters", "weights (bf16)", "prefill"), *_part_rows(budget)])
    yield ""
    yield from aligned(list(_memory_rows(budget)))
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
