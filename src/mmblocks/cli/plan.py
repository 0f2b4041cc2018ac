"""Tokens, compute and memory of a model for given images and videos, or of a training on given data.

Reads no weights and uses no network.

  mmblocks plan RECIPE image=1000x700 image=384x384 video=1280x720@30s
  mmblocks plan llava_next/vicuna_7b model/projector=gated image=1000x700 --json
  mmblocks plan runs/mine/model image=1000x700

Sizes are WIDTHxHEIGHT in pixels. A video also has its seconds, and its frames per second if not 30
(video=1280x720@30s@25fps). All visuals are in one conversation. Other words are overrides.

  mmblocks plan RECIPE data=train.json ranks=64 images=photos stage=onevision
  mmblocks plan RECIPE data=recipe
  mmblocks plan RECIPE ranks=8,64 --memory
  mmblocks plan RECIPE --trains

With data, only the headers of its media are read. The plan shows how many tokens, views and labels the samples have, what
padding and packing waste, and how evenly the work is spread over the ranks. data=FILE (may be repeated) is read as the
last stage would read it, or as the stage in stage=; data=recipe is the data of the recipe's own stages. images= and videos=
are the folders of the media, ignore=KEY,KEY keys of records that may be ignored, samples= the most samples to measure
(10000), cost= a saved calibration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.cli.model_options import MODEL_FORMS
from mmblocks.cli.plan_data import WORDS, PlanRequest, format_stage, plan_stages
from mmblocks.cli.tables import align_columns
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.model.budget import Budget

MEDIA = ("image=", "video=")
DEFAULT_MEDIA = ("image=1000x700",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        help="a recipe (`mmblocks recipes`, or a YAML file), a system (`mmblocks list system`), or a model on this machine: "
        f"{MODEL_FORMS}",
    )
    parser.add_argument(
        "words", nargs="*", help=f"images and videos ({DEFAULT_MEDIA[0]} when there are none) or data, and overrides"
    )
    parser.add_argument("--text", type=int, default=64, metavar="TOKENS", help="text tokens beside the visuals (64)")
    parser.add_argument("--memory", action="store_true", help="memory of training by stage, for ranks=8,64 processes")
    parser.add_argument("--trains", action="store_true", help="what learns in each stage, how much and how fast")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mmblocks.cli.memory_report import compute_stage_memory, format_memory, read_ranks
    from mmblocks.pretrained import forbid_fetching
    from mmblocks.train.starting_model import adopt_components, describe_absent_start

    media = [word for word in args.words if word.startswith(MEDIA)]
    data_words = [word for word in args.words if word.startswith(WORDS)]
    with forbid_fetching():
        raw = adopt_components(_compose(args.recipe, [w for w in args.words if w not in media and w not in data_words]))
        if note := describe_absent_start(raw):
            print(f"note: {note}", file=sys.stderr)
        if args.memory:
            stages = compute_stage_memory(raw, read_ranks(data_words))
            plain = {name: [memory.to_dict() for memory in rows] for name, rows in stages.items()}
            _print_plan(plain, format_memory(stages), as_json=args.json)
        elif args.trains:
            _print_training_table(raw, as_json=args.json)
        elif not data_words:
            _print_media_plan(raw, media, args)
        else:
            request = PlanRequest.from_words(data_words)
            if media or not request.data:
                wrong = f"{media[0]} is an image or video" if media else f"{data_words[0]} is about data"
                raise ConfigError(
                    f"{wrong}; write either images and videos, or data=FILE (or data=recipe) and words about it."
                )
            figures = []
            for stage in plan_stages(raw, request):
                if not args.json:  # each table as soon as its stage is measured
                    print("\n".join(["\n"] * bool(figures) + list(format_stage(stage))))
                figures.append(stage.to_dict())
            if args.json:
                print(json.dumps(figures, indent=2))
    return 0


def _compose(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe or a system with its overrides, or {"model": ...} of a model on this machine."""
    from mmblocks import conf
    from mmblocks.pretrained import find_cached_folder

    if not Path(name).is_dir() and (name in conf.list_recipes() or find_cached_folder(name, "config.json") is None):
        return conf.compose_for_planning(name, overrides)
    from mmblocks.model.loading import locate_model, read_located_spec

    if overrides:
        raise ConfigError(f"{name} is a model, and {overrides[0]} goes with a recipe; `mmblocks swap` changes a model.")
    return {"model": read_located_spec(locate_model(name)).to_dict()}


def _print_plan(values: object, lines: Iterable[str], *, as_json: bool) -> None:
    print(json.dumps(values, indent=2) if as_json else "\n".join(lines))


def _print_media_plan(raw: Mapping[str, Any], media: Sequence[str], args: argparse.Namespace) -> None:
    from mmblocks.model.budget import estimate_budget, parse_visual_shape
    from mmblocks.model.checks.composition import dry_build
    from mmblocks.train.estimates.memory import estimate_stage_states

    shapes = [parse_visual_shape(word) for word in media or DEFAULT_MEDIA]
    seen = dry_build(raw["model"])
    budget = estimate_budget(seen, shapes, text_tokens=args.text)
    training = {name: state.total for name, state in estimate_stage_states(raw, seen).items()}
    values = {**budget.to_dict(), "training_bytes": training}
    _print_plan(values, format_budget(raw["model"], budget, training), as_json=args.json)


def _print_training_table(raw: Mapping[str, Any], *, as_json: bool) -> None:
    from mmblocks.train.reports.parameter_table import format_training_table, make_training_tables

    if not raw.get("stages"):
        raise ConfigError("--trains is about training, and a system has no stages; name a recipe (`mmblocks recipes`).")
    tables = make_training_tables(raw)
    pages = (f"{name}\n{format_training_table(rows)}" for name, rows in tables.items())
    _print_plan(
        {name: [asdict(row) for row in rows] for name, rows in tables.items()}, ["\n\n".join(pages)], as_json=as_json
    )


# Tables -------------------------------------------------------------------------------------------------------------


def format_budget(model: Mapping[str, Any], budget: Budget, training: Mapping[str, int]) -> Iterator[str]:
    """The budget as aligned tables. training: bytes of the state of each stage on one process."""
    from mmblocks.registry import split_spec

    names = {kind: split_spec(model[kind])[0] for kind in ("encoder", "projector", "pooling", "backbone")}
    visual = ", ".join(f"{scenario} {split_spec(spec)[0]}" for scenario, spec in model["tokenizer"].items())
    yield f"{names['encoder']} -> {names['projector']} -> {visual} (pooling {names['pooling']}) -> {names['backbone']}"
    yield ""
    yield from align_columns([("visual", "pixels", "scenario", "views", "tokens"), *_list_visual_rows(budget)])
    yield ""
    yield from align_columns([("part", "parameters", "weights (bf16)", "prefill"), *_list_part_rows(budget)])
    yield ""
    states = [(f"training {name}: weights, gradients, Adam", format_bytes(size)) for name, size in training.items()]
    yield from align_columns([("KV cache (bf16)", format_bytes(budget.kv_cache_bytes)), *states])
    yield from (f"note: {note}" for note in budget.notes)
    if not budget.is_within_limit:
        yield (
            f"too long: {budget.sequence_tokens} tokens, the backbone takes {budget.max_tokens}; show fewer or smaller "
            "visuals, or raise model.backbone.max_tokens."
        )


def _list_visual_rows(budget: Budget) -> Iterator[tuple[str, ...]]:
    for visual in budget.visuals:
        frames = f", {visual.num_frames} frames" if visual.kind == "video" else ""
        pixels = f"{visual.size.width}x{visual.size.height}{frames}"
        yield visual.kind, pixels, visual.scenario, str(visual.views), str(visual.tokens)
    if budget.inline_text_tokens:
        yield "inline text", "", "", "", str(budget.inline_text_tokens)
    yield "text", "", "", "", str(budget.text_tokens)
    yield "sequence", "", "", str(budget.views), f"{budget.sequence_tokens} of {budget.max_tokens}"


def _list_part_rows(budget: Budget) -> Iterator[tuple[str, ...]]:
    for part, count in budget.parameters.items():
        flops = budget.flops.get(part, 0)
        yield part, format_number(count), format_bytes(2 * count), format_number(flops, "FLOP")
        if part == "backbone":
            yield "  attention", "", "", format_number(budget.flops.get("attention"), "FLOP")
            yield "  last row's head", "", "", format_number(budget.flops.get("head"), "FLOP")
    known = [n for part, n in budget.flops.items() if part != "attention"]
    total = None if None in known else sum(n or 0 for n in known)
    yield (
        "all",
        format_number(sum(budget.parameters.values())),
        format_bytes(budget.weight_bytes),
        format_number(total, "FLOP"),
    )


def format_number(number: float | None, unit: str = "") -> str:
    """A number in thousands, millions, ...: 397745440 -> '397.7 M'."""
    if number is None:
        return "unknown"
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {prefix}{unit}"
    return f"{number} {unit}".rstrip()


def format_bytes(size: int | None) -> str:
    """A number of bytes in the units of `plan --memory`: 1073741824 -> '1.0 GiB'."""
    if size is None:
        return "unknown"
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
