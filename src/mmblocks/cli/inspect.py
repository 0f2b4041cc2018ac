"""Statistics of a recipe's data, and single records as the model sees them. Reads no weights.

  mmblocks inspect RECIPE                                counts, distributions and faults of every stage's sources
  mmblocks inspect RECIPE data=my.json --all             the same of your own records, all of them
  mmblocks inspect RECIPE data=my.json --record 12       record 12: prompt, trained tokens, tiles, frames

data=FILE (.json, .jsonl, .parquet, .tar, .yaml, or a folder; may be repeated) replaces the data of all stages.
images=FOLDER and videos=FOLDER are the folders of its media, ignore=KEY,KEY keys of its records that may be ignored. Other
words are overrides. Figures come from file headers. Plots and pages are written to the folder of --out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.cli.stage_data import SOURCE_WORDS, list_stages, make_stage_processor, read_source_words
from mmblocks.cli.tables import align_columns
from mmblocks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mmblocks.data.inspect.figures import InspectedRecord, SourceFigures
    from mmblocks.data.mixing.mixture import Mixture
    from mmblocks.data.sample.processor import Processor
    from mmblocks.train.stages import Stage

WORDS = ("data=", *SOURCE_WORDS)
TRAINED = ("\033[42;30m", "\033[0m")
BRACKETS = ("[[", "]]")
MAX_FRAMES_LISTED = 12
CONTENT_COLUMNS = ("source", "records", "looked at", "images", "videos", "text only", "turns", "faulty")
DISTRIBUTION_COLUMNS = ("source", "of a sample", "5 %", "50 %", "95 %", "most", "sum")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        help="a recipe (`mmblocks recipes`, or a YAML file); with data= also a system (`mmblocks list system`)",
    )
    parser.add_argument("words", nargs="*", help="data=FILE, and overrides")
    parser.add_argument("--stage", help="only this stage (default: all stages; with --record the last)")
    parser.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="N",
        help="show record N, or SOURCE:N, both counted from 0; may be repeated",
    )
    parser.add_argument(
        "--samples", type=int, default=500, help="records to read of each source, evenly spaced (default 500)"
    )
    parser.add_argument("--all", action="store_true", help="read every record")
    parser.add_argument("--out", type=Path, default=Path("inspect"), help="folder for plots and pages (./inspect)")


def run(args: argparse.Namespace) -> int:
    from mmblocks import conf
    from mmblocks.data.mixing.mixture import Mixture
    from mmblocks.train.starting_model import adopt_components

    if args.samples < 1:
        raise ConfigError(f"--samples {args.samples}: look at 1 record or more.")
    pairs = [word.partition("=")[::2] for word in args.words if word.startswith(WORDS)]
    files, settings = [value for key, value in pairs if key == "data"], read_source_words(dict(pairs))
    if settings and not files:
        raise ConfigError(
            f"{', '.join(settings)}: these are media folders and ignored keys of data=FILE; name the file too."
        )
    raw = conf.compose_for_planning(args.recipe, [word for word in args.words if not word.startswith(WORDS)])
    raw = adopt_components(raw)
    stages = list_stages(raw, args.stage, files, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    for stage in stages[-1:] if args.record else stages:
        mixture, processor = Mixture.from_entries(stage.data), make_stage_processor(raw, stage)
        print(f"stage {stage.name}")
        if args.record:
            _show_records(mixture, processor, stage, args)
        else:
            _show_figures(mixture, processor, stage, args)
    return 0


# Figures ------------------------------------------------------------------------------------------------------------


def _show_figures(mixture: Mixture, processor: Processor, stage: Stage, args: argparse.Namespace) -> None:
    from mmblocks.data.inspect.drawing import draw_figures
    from mmblocks.data.inspect.figures import compute_figures

    samples = None if args.all else args.samples
    figures = compute_figures(mixture, processor, stage.targets, samples_per_source=samples)
    print("\n".join(format_figures(figures)))
    plot = args.out / f"{_to_file_name(stage.name)}.png"
    draw_figures(figures, plot, title=f"stage {stage.name}: samples by tokens, views and labels")
    print(f"written  {plot}\n")


def format_figures(figures: Sequence[SourceFigures]) -> Iterator[str]:
    """The figures as aligned lines: content of each source, distributions, faults."""
    from mmblocks.data.inspect.figures import MEASURES, QUANTILES

    counts = [
        (f.lint.size, f.lint.num_checked, f.images, f.videos, f.text_only, f.turns, len(f.lint.faulty)) for f in figures
    ]
    contents = [(f.name, *map(str, numbers)) for f, numbers in zip(figures, counts, strict=True)]
    yield from align_columns([CONTENT_COLUMNS, *contents])
    yield ""
    rows: list[tuple[str, ...]] = [DISTRIBUTION_COLUMNS]
    for f in figures:
        for measure in MEASURES:
            quantiles = f.compute_quantiles(measure) or ("-",) * len(QUANTILES)
            name = f.name if measure == MEASURES[0] else ""
            rows.append((name, measure, *map(str, quantiles), str(int(getattr(f, measure).sum()))))
    yield from align_columns(rows)
    yield ""
    for f in figures:
        yield from f.lint.format_lines()


# Records ------------------------------------------------------------------------------------------------------------


def _show_records(mixture: Mixture, processor: Processor, stage: Stage, args: argparse.Namespace) -> None:
    from mmblocks.data.inspect.figures import inspect_records, parse_record
    from mmblocks.data.inspect.record_page import make_page
    from mmblocks.data.record_errors import name_errors

    markers = TRAINED if sys.stdout.isatty() else BRACKETS
    for text in args.record:
        draw = parse_record(text, mixture)
        pages = []
        try:
            for record in inspect_records(mixture, draw, processor, stage.targets):
                with name_errors(record.origin):  # the page has the decoded visuals
                    pages.append((record, make_page(record)))
        except DataError as fault:
            raise DataError(f"--record {text} of {mixture.names[draw.source]}: {fault}") from fault
        for number, (record, html) in enumerate(pages):
            suffix = f"-{number + 1}" if number else ""
            page = args.out / f"{_to_file_name(stage.name)}-{draw.source}-{draw.record}{suffix}.html"
            page.write_text(html, encoding="utf-8")
            print("\n".join(format_record(record, markers)))
            print(f"written  {page}\n")


def format_record(record: InspectedRecord, markers: tuple[str, str]) -> Iterator[str]:
    """A record as lines of text; trained text is between `markers`."""
    encoded = record.encoded
    yield f"record   {record.origin}"
    yield f"tokens   {len(encoded)}, {encoded.visual_positions.numel()} of them visual, {encoded.num_labelled} trained"
    if encoded.num_cut:
        yield f"cut      {encoded.num_cut} tokens at the end of the last answer, which are over the limit"
    yield from (f"fault    {finding.detail}" for finding in record.findings)
    for number, visual in enumerate(record.visuals, start=1):
        plan, shape = visual.routed.plan, visual.shape
        yield (
            f"visual   {number}: {shape.kind} {shape.size.width}x{shape.size.height}, shown as {visual.routed.scenario}, "
            f"{len(plan.views)} views, {plan.num_tokens} tokens"
        )
        if shape.kind == "video":
            frames = [f"{frame} ({seconds:.2f}s)" for frame, seconds in visual.frames]
            more = f" and {len(frames) - MAX_FRAMES_LISTED} more" if len(frames) > MAX_FRAMES_LISTED else ""
            listed = ", ".join(frames[:MAX_FRAMES_LISTED])
            yield f"         frames {listed}{more} of {shape.num_frames}, {visual.frame_rate}"
        yield from (f"         inline text after {rows} tokens: {text!r}" for rows, text in plan.inline_texts)
    yield ""
    yield format_prompt(record, markers)
    yield ""


def format_prompt(record: InspectedRecord, markers: tuple[str, str]) -> str:
    """The whole prompt: a note in place of each visual's tokens, trained text between `markers`."""
    from mmblocks.data.inspect.figures import VisualTokens

    begin, end = markers
    return "".join(
        f"<{record.visuals[piece.number - 1].shape.kind} {piece.number}: {piece.num_tokens} tokens>"
        if isinstance(piece, VisualTokens)
        else f"{begin}{piece.text}{end}"
        if piece.trained
        else piece.text
        for piece in record.prompt
    )


def _to_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
