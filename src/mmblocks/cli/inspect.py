"""What a recipe's data holds, and single records as the model will see them. Reads no weights.

  mmblocks inspect RECIPE                                counts, distributions and faults of every stage's sources
  mmblocks inspect RECIPE data=my.json --all             the same of your own records, all of them
  mmblocks inspect RECIPE data=my.json --record 12       record 12: prompt, trained tokens, tiles, frames

data=FILE (.json, .jsonl, .parquet, .tar, .yaml, or a folder; several may be given) replaces the data of all stages;
images=FOLDER and videos=FOLDER say where its media lie, ignore=KEY,KEY which keys of its records may be left out. Other
words are overrides. Figures come from file headers; images and pages go to the folder of --out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.cli.tables import align_columns
from mmblocks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mmblocks.data.inspect.figures import InspectedRecord, InspectedVisual, SourceFigures
    from mmblocks.data.mixing.mixture import Mixture
    from mmblocks.data.sample.processor import Processor
    from mmblocks.train.stages import Stage

WORDS = ("data=", "images=", "videos=", "ignore=")
TRAINED = ("\033[42;30m", "\033[0m")
BRACKETS = ("[[", "]]")
MAX_FRAMES_LISTED = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        help="a recipe (`mmblocks recipes`, or a YAML file); with data= also a system (`mmblocks list system`)",
    )
    parser.add_argument("words", nargs="*", help="data=FILE, and overrides")
    parser.add_argument("--stage", help="only this stage (default: all; for --record the last)")
    parser.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="N",
        help="show record N, or SOURCE:N, both counted from 0; may be given several times",
    )
    parser.add_argument(
        "--samples", type=int, default=500, help="records looked at of each source, evenly drawn (default 500)"
    )
    parser.add_argument("--all", action="store_true", help="look at every record")
    parser.add_argument("--out", type=Path, default=Path("inspect"), help="folder for images and pages (./inspect)")


def run(args: argparse.Namespace) -> int:
    from mmblocks.data.mixing.mixture import Mixture

    if args.samples < 1:
        raise ConfigError(f"--samples {args.samples}: look at 1 record or more.")
    data = _read_sources([word.partition("=") for word in args.words if word.startswith(WORDS)])
    raw = _composed(args.recipe, [word for word in args.words if not word.startswith(WORDS)], data)
    stages = _select_stages(_stages(raw, data), args.stage)
    args.out.mkdir(parents=True, exist_ok=True)
    for stage in stages[-1:] if args.record else stages:
        mixture, processor = Mixture.from_entries(stage.data), _make_processor(raw, stage)
        print(f"stage {stage.name}")
        if args.record:
            _show_records(mixture, processor, stage, args)
        else:
            _show_figures(mixture, processor, stage, args)
    return 0


# What to inspect ----------------------------------------------------------------------------------------------------


def _read_sources(words: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """The sources of the files that are named, with their media folders and ignored keys; empty without any."""
    from mmblocks.data.sources.guess import guess_sources

    roots = {key: value.split(",") if key == "ignore" else value for key, _, value in words if key != "data"}
    files = [value for key, _, value in words if key == "data"]
    if roots and not files:
        raise ConfigError(
            f"{', '.join(roots)}: these are media folders and ignored keys of data=FILE; name the file too."
        )
    return [{**source, **roots} for source in guess_sources(files)]


def _composed(recipe: str, overrides: Sequence[str], data: Sequence[Any]) -> Mapping[str, Any]:
    from mmblocks import conf

    raw = conf.compose_for_planning(recipe, overrides)
    if "stages" not in raw and not data:
        raise ConfigError(f"{recipe!r} is a system, which has no data of its own; add data=FILE.")
    return raw


def _stages(raw: Mapping[str, Any], data: list[dict[str, Any]]) -> list[Stage]:
    """The stages of a recipe, with `data` where there is some; of a system one stage that shows it."""
    from mmblocks.train.stages import Stage, read_run

    if "stages" not in raw:
        return [Stage(name="data", data=data, train={})]
    return [replace(stage, data=data or stage.data) for stage in read_run(raw).stages]


def _select_stages(stages: Sequence[Stage], name: str | None) -> list[Stage]:
    from mmblocks.settings import format_suggestion

    names = [stage.name for stage in stages]
    if name is not None and name not in names:
        raise ConfigError(f"--stage {name}: the stages are {', '.join(names)}.{format_suggestion(name, names)}")
    return [stage for stage in stages if name in (None, stage.name)]


def _make_processor(raw: Mapping[str, Any], stage: Stage) -> Processor:
    from mmblocks.data.sample.processor import Processor
    from mmblocks.data.video.video_reader import VideoReader

    return Processor.from_spec(
        raw["model"],
        template=stage.template,
        tokenizer=stage.tokenizer,
        max_tokens=stage.max_tokens,
        visuals=stage.visuals,
        overlong=stage.overlong,
        seed=raw.get("seed", 0),
        video_reader=VideoReader(raw["video_deadline_s"]) if "video_deadline_s" in raw else VideoReader(),
    )


# Figures ------------------------------------------------------------------------------------------------------------


def _show_figures(mixture: Mixture, processor: Processor, stage: Stage, args: argparse.Namespace) -> None:
    from mmblocks.data.inspect.drawing import draw_figures
    from mmblocks.data.inspect.figures import compute_figures

    most = None if args.all else args.samples
    figures = compute_figures(mixture, processor, stage.targets, samples_per_source=most)
    print("\n".join(format_figures(figures)))
    image = args.out / f"{_to_file_name(stage.name)}.png"
    draw_figures(figures, image, title=f"stage {stage.name}: samples by tokens, views and labels")
    print(f"written  {image}\n")


def format_figures(figures: Sequence[SourceFigures]) -> Iterator[str]:
    """The figures as aligned lines: what each source holds, its distributions, its faults."""
    yield from align_columns([CONTENT_COLUMNS, *map(_content, figures)])
    yield ""
    yield from align_columns([DISTRIBUTION_COLUMNS, *(row for source in figures for row in _spread(source))])
    yield ""
    for source in figures:
        yield from source.lint.format_lines()


CONTENT_COLUMNS = ("source", "records", "looked at", "images", "clips", "text only", "turns", "faulty")
DISTRIBUTION_COLUMNS = ("source", "of a sample", "5 %", "50 %", "95 %", "most", "sum")


def _content(f: SourceFigures) -> tuple[str, ...]:
    counts = (f.lint.size, f.lint.num_checked, f.images, f.videos, f.text_only, f.turns, len(f.lint.faulty))
    return (f.name, *map(str, counts))


def _spread(f: SourceFigures) -> Iterator[tuple[str, ...]]:
    from mmblocks.data.inspect.figures import MEASURES, QUANTILES

    for measure in MEASURES:
        quantiles = f.compute_quantiles(measure) or ("-",) * len(QUANTILES)
        name = f.name if measure == MEASURES[0] else ""
        yield (name, measure, *map(str, quantiles), str(int(getattr(f, measure).sum())))


# Records ------------------------------------------------------------------------------------------------------------


def _show_records(mixture: Mixture, processor: Processor, stage: Stage, args: argparse.Namespace) -> None:
    from mmblocks.data.inspect.figures import inspect_records, parse_record

    marks = TRAINED if sys.stdout.isatty() else BRACKETS
    for text in args.record:
        draw = parse_record(text, mixture)
        try:
            shown = inspect_records(mixture, draw, processor, stage.targets)
            pages = [_render_page(record) for record in shown]
        except DataError as fault:
            raise DataError(f"--record {text} of {mixture.names[draw.source]}: {fault}") from fault
        for number, (record, html) in enumerate(zip(shown, pages, strict=True)):
            page = (
                args.out
                / f"{_to_file_name(stage.name)}-{draw.source}-{draw.record}{f'-{number + 1}' if number else ''}.html"
            )
            page.write_text(html, encoding="utf-8")
            print("\n".join(format_record(record, marks)))
            print(f"written  {page}\n")


def _render_page(record: InspectedRecord) -> str:
    """A record as a page, its visuals decoded."""
    from mmblocks.data.inspect.record_page import make_page
    from mmblocks.data.record_errors import name_errors

    with name_errors(record.origin):
        return make_page(record)


def format_record(record: InspectedRecord, marks: tuple[str, str]) -> Iterator[str]:
    """A record as lines of text; what is trained stands between `learned_tokens`."""
    encoded = record.encoded
    yield f"record   {record.origin}"
    yield f"tokens   {len(encoded)}, {encoded.visual_positions.numel()} of them visual, {encoded.num_labelled} trained"
    if encoded.num_cut:
        yield f"cut      {encoded.num_cut} tokens at the end of the last answer, which are over the limit"
    yield from (f"fault    {finding.detail}" for finding in record.findings)
    for number, shown in enumerate(record.visuals, start=1):
        yield from _visual_lines(number, shown)
    yield ""
    yield format_prompt(record, marks)
    yield ""


def format_prompt(record: InspectedRecord, marks: tuple[str, str]) -> str:
    """The whole prompt: each visual as a note of its tokens, trained tokens between `learned_tokens`."""
    from mmblocks.data.inspect.figures import VisualTokens

    begin, end = marks
    return "".join(
        f"<{record.visuals[piece.number - 1].shape.kind} {piece.number}: {piece.num_tokens} tokens>"
        if isinstance(piece, VisualTokens)
        else f"{begin}{piece.text}{end}"
        if piece.trained
        else piece.text
        for piece in record.prompt
    )


def _visual_lines(number: int, shown: InspectedVisual) -> Iterator[str]:
    plan, shape = shown.routed.plan, shown.shape
    yield (
        f"visual   {number}: {shape.kind} {shape.size.width}x{shape.size.height}, shown as {shown.routed.scenario}, "
        f"{len(plan.views)} views, {plan.num_tokens} tokens"
    )
    if shape.kind == "video":
        frames = [f"{frame} ({seconds:.2f}s)" for frame, seconds in shown.frames]
        more = f" and {len(frames) - MAX_FRAMES_LISTED} more" if len(frames) > MAX_FRAMES_LISTED else ""
        yield f"         frames {', '.join(frames[:MAX_FRAMES_LISTED])}{more} of {shape.num_frames}, {shown.frame_rate}"
    yield from (f"         told after {rows} tokens: {text!r}" for rows, text in plan.inline_texts)


def _to_file_name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.-]", "_", text)
