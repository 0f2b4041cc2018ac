"""Write docs/reference/benchmarks.md and its pictures from the tables of docs/benchmarks; nothing is measured here.

    python docs/scripts/write_benchmarks.py

A table that is missing leaves a section that says so.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

import benchmarks_figures as figures
from benchmarks_targets import COUNTERS, EVALUATION, GPU, MEMORY, STARTUP_AIMS, TIMES, Target

from tests.bench.suites.rows import Row, read
from tests.bench.suites.startup import MODULES, OWN, OWN_BEYOND_MODULES, WHOLE

DOCS = Path(__file__).parents[1]
TABLES = DOCS / "benchmarks"
PAGE = DOCS / "reference/benchmarks.md"
PACKING = "packing.csv"
STARTUP = (MODULES, WHOLE, OWN, OWN_BEYOND_MODULES)
TIMED = (
    "prefill",
    "train",
    "pool",
    "second_question",
    "decode",
    "vit",
    "pool_kernel",
    "layer_kernels",
    "attention",
    "ceil",
)
HEAD = """\
# Benchmarks

This page compares mmblocks with transformers' LlavaOnevision, with the same weights. Each case first verifies that both compute the
same result. Then both run alternately in one process. A ratio above 1 means that mmblocks is better by that factor.

- **as shipped**: transformers, called as in its documentation
- **best**: the fastest of the settings that transformers offers for the case
- **naive**: project every patch, and compute the logits of every row

[Measure speed and memory](../howto/measure.md) describes how to repeat the measurements.
`python docs/scripts/write_benchmarks.py` writes this page and its plots from the tables in `docs/benchmarks`.
"""
NONE = "Not measured yet: no table holds such rows.\n"
NO_GPU_ROWS = """\
Not measured: no table of this repository has rows of a GPU. These commands fill `docs/benchmarks/gpu.csv`. Then
`python docs/scripts/write_benchmarks.py` adds the results to this page.

```text
{commands}
```
"""


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything that was measured: rows of all tables, and the lines of the simulated packing."""

    rows: Sequence[Row] = ()
    packing: Sequence[Mapping[str, str]] = ()

    @classmethod
    def of(cls, folder: Path) -> Tables:
        files = sorted(path for path in folder.glob("*.csv") if path.name != PACKING)
        return cls([row for path in files for row in read(path)], _lines(folder / PACKING))

    def of_suites(self, *suites: str, devices: Sequence[str] = ("cpu", "meta")) -> list[Row]:
        """Rows of some suites, in the order in which the suites are named."""
        return [row for suite in suites for row in self.rows if row.suite == suite and row.device in devices]


WHY_MISSED = """What limits the missed goals: the vision encoder is the same code on both sides. It is three quarters of the prefill of a video in
`tiny`, so counted FLOPs allow 1.30x and 1.14x there. In memory, vision blocks are those of transformers on both sides and keep the same
activations. Of those of the decoder mmblocks keeps little more than half (fused layers on CUDA). It saves the logits without a label and
the padding, and these inputs have no padding.
"""


def _lines(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(folder: Path = TABLES, page: Path = PAGE) -> None:
    """Write the page and the pictures, and remove pictures of tables that are gone."""
    tables = Tables.of(folder)
    kept = set(pictures(tables, folder))
    for stale in set(folder.glob("*.svg")) - kept:
        stale.unlink()
    page.write_text(text(tables, folder), encoding="utf-8")


def text(tables: Tables, folder: Path = TABLES) -> str:
    """The page as Markdown."""
    sections: tuple[Callable[[Tables], Iterator[str]], ...] = (
        _targets,
        _times,
        _train_loop,
        _evaluation,
        _serving,
        _planning,
        _records,
        _counters,
        _memory,
        _growth,
        _packing,
        _startup,
        _loading,
        _images,
        _clips,
        _gpu,
    )
    lines = [HEAD]
    for section in sections:
        lines += section(tables)
    return "\n".join(lines).rstrip() + "\n"


# Pictures -----------------------------------------------------------------------------------------------------------


def pictures(tables: Tables, folder: Path) -> Iterator[Path]:
    """Draw every picture that there are rows for."""
    for name, rows, draw in (
        ("times", _with_ratio(tables.of_suites(*TIMED)), figures.ratios),
        ("memory", _with_ratio(tables.of_suites("memory")), figures.memory),
        ("times_gpu", _with_ratio(tables.of_suites(*TIMED, devices=("cuda",))), figures.ratios),
        ("memory_gpu", _with_ratio(tables.of_suites("memory", devices=("cuda",))), figures.memory),
        *((f"scale_{size}", rows, figures.growth) for size, rows in _by_size(tables.of_suites("scale")).items()),
        ("records", tables.of_suites("records"), figures.opening),
        ("serving", _without_peer(tables.of_suites("serving")), figures.serving),
        ("packing_waste", tables.packing, figures.waste),
        ("packing_ranks", tables.packing, figures.efficiency),
    ):
        if rows:
            draw(rows, path := folder / f"{name}.svg")
            yield path


def _with_ratio(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.ratio is not None and row.peer_setting]


def _without_peer(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.peer is None]


def _by_size(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {size: [row for row in rows if row.size == size] for size in dict.fromkeys(row.size for row in rows)}


def _picture(name: str, title: str) -> str:
    return f"![{title}](../benchmarks/{name}.svg)\n"


# Targets ------------------------------------------------------------------------------------------------------------


def _targets(tables: Tables) -> Iterator[str]:
    yield "## Goals and results\n"
    yield "The goals were set before the optimized core was built. If several rows belong to a goal, the worst one counts.\n"
    yield from _target_table((*TIMES, *EVALUATION, *COUNTERS, *MEMORY), tables.rows)
    yield WHY_MISSED


def _target_table(targets: Sequence[Target], rows: Sequence[Row]) -> Iterator[str]:
    yield "| goal | at least | measured | |\n|---|---:|---:|---|"
    for target in targets:
        yield f"| {target.says} | {_in_terms(target, target.least)} | {_found(target, target.rows(rows))} |"
    yield ""


def _found(target: Target, rows: Sequence[Row]) -> str:
    if not rows:
        return " | not measured"
    worst = min(rows, key=lambda row: getattr(row, target.of))
    value = getattr(worst, target.of)
    where = "" if len(rows) == 1 else f" ({figures.size_name(worst.size)}, {worst.scenario}, the worst of {len(rows)})"
    return f"{_in_terms(target, value)} | {'reached' if value >= target.least else '**missed**'}{where}"


def _in_terms(target: Target, value: float) -> str:
    return f"{value:.0%}" if target.of == "floor_share" else f"{value:.3g}x"


# Sections -----------------------------------------------------------------------------------------------------------


def _times(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites(*TIMED)
    yield "## Times on a CPU\n"
    if not rows:
        yield NONE
        return
    yield (
        "Medians of the processor time of one thread. Bars are ratios; whiskers are the middle half of the repetitions of "
        "mmblocks.\n"
    )
    if _with_ratio(rows):
        yield _picture("times", "How many times faster than transformers")
    yield from _row_table(rows)


def _train_loop(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("train_loop")
    yield "## The training loop\n"
    if not rows:
        yield NONE
        return
    yield (
        "A run of `mmblocks train` (data from the loader, seeds, finite guard, progress, metrics) beside a bare loop of forward, backward, "
        "clipping and optimizer over the same model and batches. The model is small, so that what the loop adds can be seen; with "
        "models that people train it is a smaller share. Both loops leave the same weights, to the bit.\n"
    )
    yield from _quantity_table(rows)


def _evaluation(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("evaluation")
    yield "## Many documents\n"
    if not rows:
        yield NONE
        return
    yield (
        "Answers (`mmblocks.respond`), and multiple choice by log-likelihood (`mmblocks.score`), beside a loop over transformers that "
        "takes one document at a time and, for multiple choice, one choice at a time. The time of mmblocks includes reading "
        "images and tokenising; the inputs of transformers are made before. Images are random, of 56 x 56 pixels in the size "
        "`least`; a video has 2 frames.\n"
    )
    yield from _row_table(rows)


def _planning(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("planning")
    yield "## Planning\n"
    if not rows:
        yield NONE
        return
    yield (
        "Lengths of samples of one image and about 90 text tokens, measured from the headers of their JPEG files, from images in "
        "memory, and with the lengths of an earlier start; then the steps of a million such lengths. One process of one thread; "
        "workers share the samples. Before anything is timed, the lengths are compared with those of encoded samples.\n"
    )
    yield from _quantity_table(rows)


def _serving(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("serving")
    yield "## Serving\n"
    if not rows:
        yield NONE
        return
    yield (
        "Requests to `mmblocks serve` over HTTP, beside `transformers serve` and a loop over `generate` with the same weights, each a "
        "process with one thread. A client in another process asks; times are of the clock on the wall. All answers are compared "
        "first. Every repetition shows other images. A server gets the whole conversation with each question, `Chat` keeps it.\n"
    )
    yield _picture("serving", "Tokens a second by requests at a time")
    yield from _row_table([row for row in rows if row.peer is not None])


def _records(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("records")
    yield "## Files of records\n"
    if not rows:
        yield NONE
        return
    yield (
        "Processor time of opening a file of records of about 600 bytes, the first time and again, and the private memory of the "
        "process after it has opened the file again, per record. Records are then read in random order.\n"
    )
    yield _picture("records", "Seconds until a file of records is open")
    yield from _quantity_table(rows)


def _counters(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("counters")
    yield "## Counted values\n"
    if not rows:
        yield NONE
        return
    yield "These values are equal on every machine. Tests in `tests/bench` verify them.\n"
    yield from _row_table(rows, timed=False)


def _memory(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("memory")
    yield "## Memory of a training step\n"
    if not rows:
        yield NONE
        return
    yield (
        "Two conversations in a row of 16k tokens, a tenth of them labelled, in bfloat16, with every part trained. Both models "
        "run on the meta device, forward and backward, and every storage is counted from its allocation until it is freed. A "
        "peak includes weights and gradients, but no optimizer state. Attention is counted as a fused kernel on both sides. "
        'With gradient checkpointing ("blocks recomputed"), both store the input of a block and compute the inside again.\n'
    )
    yield _picture("memory", "Bytes of a training step")
    yield from _row_table(rows, timed=False)


def _growth(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("scale")
    yield "## How cost grows\n"
    if not rows:
        yield NONE
        return
    yield (
        "FLOPs of a prefill by part, size of the key-value cache, and activations that a training step keeps for the backward "
        "pass, for growing numbers of images (640x480) and frames, and for larger images, with 64 text tokens. Counted on the "
        "meta device. A single image is cut into tiles; each of several images is one view.\n"
    )
    for size, own in _by_size(rows).items():
        yield f"### {figures.size_name(size)}\n"
        yield _picture(f"scale_{size}", f"How cost grows at {figures.size_name(size)}")
        yield from _growth_table(own)
    yield from _told(rows)


def _growth_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | tokens | views | cache | prefill | naive | kept for backward | naive |\n|---|" + "---:|" * 7
    for scenario in dict.fromkeys(row.scenario for row in rows):
        own = {row.quantity: row for row in rows if row.scenario == scenario}
        cells = [_value(own[name].ours, own[name].unit) for name in ("tokens", "views", "key-value cache")]
        for name in ("prefill", "kept for backward"):
            cells += [_value(value, own[name].unit) for value in (own[name].ours, own[name].peer)]
        yield f"| {scenario.replace('=', ' = ')} | {' | '.join(cells)} |"
    yield ""


def _packing(tables: Tables) -> Iterator[str]:
    yield "## Packing and balance (simulated)\n"
    if not tables.packing:
        yield NONE
        return
    yield (
        "Simulated steps on mixtures like those of LLaVA-OneVision, with assumed sizes. The first plot shows how many tokens "
        "are computed for each real token; the rest is padding. The second one shows the share of time in which ranks work; "
        "the rest they wait for the slowest rank. Nothing is trained: costs are estimated from FLOPs. "
        "`python docs/scripts/simulate_packing.py` computes the table.\n"
    )
    yield _picture("packing_waste", "Tokens computed for each real token")
    yield _picture("packing_ranks", "The share of time in which ranks work")
    most = max((line["ranks"] for line in tables.packing), key=int)
    yield from _efficiency_table([line for line in tables.packing if line["ranks"] == most], most)


def _efficiency_table(lines: Sequence[Mapping[str, str]], ranks: str) -> Iterator[str]:
    found = [line for line in lines if line["figure"] == "efficiency"]
    kinds = list(dict.fromkeys((line["model"], line["stage"]) for line in found))
    values = {(line["model"], line["stage"], line["batching"]): line["value"] for line in found}
    heads = [f"{model.rpartition('/')[2]}, {stage.replace('_', ' ')}" for model, stage in kinds]
    yield f"| working share of {ranks} ranks | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}"
    for way in dict.fromkeys(line["batching"] for line in found):
        shares = (values.get((*kind, way)) for kind in kinds)
        yield f"| {way} | {' | '.join('' if share is None else f'{float(share):.3f}' for share in shares)} |"
    yield ""


def _startup(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("startup")
    yield "## Start-up time\n"
    if not rows:
        yield NONE
        return
    yield (
        "Median processor time of whole processes, until a command ends or has taken its first step. The next columns subtract "
        "the time of a process that only imports torch and transformers, and of one that also imports the modules of "
        "transformers that the command needs, such as Qwen2's. The goal is for the last of these columns. "
        "`tests/cli/test_startup.py` tests what is built and imported.\n"
    )
    yield from _startup_table(rows)
    yield from _told(rows)


def _startup_table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| | {' | '.join(STARTUP)} | goal | |\n|---|{'---:|' * (len(STARTUP) + 1)}---|"
    for name in dict.fromkeys(row.scenario for row in rows):
        own = {row.quantity: row.ours for row in rows if row.scenario == name}
        times = [_value(own.get(quantity), "" if quantity == MODULES else "s") for quantity in STARTUP]
        aim, found = STARTUP_AIMS.get(name), own.get(OWN_BEYOND_MODULES)
        reached = "" if aim is None or found is None else "reached" if found < aim else "**missed**"
        yield f"| {name} | {' | '.join(times)} | {_value(aim, 's')} | {reached} |"
    yield ""


def _loading(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("loading")
    yield "## Loading\n"
    if not rows:
        yield NONE
        return
    yield (
        "LLaVA-OneVision with random weights in transformers' layout, loaded by `mmblocks.load` and by `from_pretrained`, each in a "
        "process of its own. Memory is the most that is resident beyond what importing takes. Values whose type does not change "
        "stay in the mapped file until they are used, on both sides.\n"
    )
    yield from _row_table(rows, timed=False)


def _images(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("images")
    yield "## Preparing images\n"
    if not rows:
        yield NONE
        return
    yield (
        "Decoded images cut into tiles of 384 pixels by AnyRes of at most nine, and normalised in float32, beside LLaVA-OneVision's "
        "processors in transformers. `torch` and `pillow` are values of `images.resize`; `pillow` is the default. Tiles are first "
        "compared with those of the processor that resizes likewise: `torch` with torchvision, `pillow` with PIL. "
        "The last row starts from the bytes of a JPEG, `images.decode: reduced` beside `whole`.\n"
    )
    yield from _row_table(rows)


def _clips(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites("clips")
    yield "## Reading videos\n"
    if not rows:
        yield NONE
        return
    yield (
        "32 frames of videos of 1280x720 pixels at 30 frames per second, by `read_video_shape` and `read_frames` from a file that was "
        "not seen before, beside the readers of `transformers.video_utils`, which read the same frames. One thread; a video of 10 "
        "minutes shows little motion. Pixels are compared first. torchcodec is left out where it finds no FFmpeg. Of a video of 10 "
        "seconds nearly every frame must be decoded that others are predicted from, and mmblocks decodes its first key frame three "
        "times more: when it opens the video for the shape, for its size and turn, and when it opens it for the frames.\n"
    )
    yield from _row_table(rows)


def _gpu(tables: Tables) -> Iterator[str]:
    rows = tables.of_suites(*TIMED, "memory", devices=("cuda",))
    yield "## On a GPU\n"
    if not rows:
        yield NO_GPU_ROWS.format(commands="\n".join(gpu_commands()))
        yield "The goals (ratios to transformers):\n"
        yield from _target_table(GPU, rows)
        return
    yield "Medians of CUDA events. Shares are relative to the minimum time that multiplications and copies take.\n"
    yield from _target_table(GPU, tables.rows)
    for name, suites in (("times_gpu", TIMED), ("memory_gpu", ("memory",))):
        if own := tables.of_suites(*suites, devices=("cuda",)):
            if _with_ratio(own):
                yield _picture(name, "On a GPU")
            yield from _row_table(own, timed=name == "times_gpu")


GPU_COMMANDS = (
    "ceil attention pool_kernel layer_kernels pool --size 0_5b",
    "vit prefill second_question decode --size 0_5b",
    "vit prefill second_question decode --size 7b",
    "train memory --size 0_5b",
    "train memory --size 7b",
)


def gpu_commands() -> Iterator[str]:
    """What is run on a GPU machine, one after the other."""
    for command in GPU_COMMANDS:
        yield f"python -m tests.bench {command} --device cuda --out docs/benchmarks/gpu.csv"


# Tables -------------------------------------------------------------------------------------------------------------


def _row_table(rows: Sequence[Row], *, timed: bool = True) -> Iterator[str]:
    """One line per row, and what they were measured with."""
    further = ("spread", "floor", "error") if timed else ()
    heads = ("size", "case", "what", "mmblocks", "transformers", "ratio", "setting of transformers", *further)
    yield f"| {' | '.join(heads)} |\n|---|---|---|---:|---:|---:|---|{'---:|' * len(further)}"
    for row in rows:
        cells = [figures.size_name(row.size), _case(row), row.quantity, _value(row.ours, row.unit)]
        cells += [_value(row.peer, row.unit), "" if row.ratio is None else f"{row.ratio:.2f}", _setting(row)]
        if timed:
            cells += [_share(row.spread), _share(row.floor_share), "" if row.error is None else f"{row.error:.0e}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from _told(rows)


def _quantity_table(rows: Sequence[Row]) -> Iterator[str]:
    """One line per scenario, one column per quantity, of rows without a peer."""
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    yield f"| | {' | '.join(quantities)} |\n|---|{'---:|' * len(quantities)}"
    for name in dict.fromkeys(row.scenario for row in rows):
        own = {row.quantity: _value(row.ours, row.unit) for row in rows if row.scenario == name}
        yield f"| {name} | {' | '.join(own.get(quantity, '') for quantity in quantities)} |"
    yield ""
    yield from _told(rows)


def _case(row: Row) -> str:
    return row.scenario if row.suite in ("counters", "memory") else f"{row.suite.replace('_', ' ')}: {row.scenario}"


def _setting(row: Row) -> str:
    return f"{row.peer_setting}{': ' * bool(row.settings and row.peer_setting)}{row.settings}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _told(rows: Sequence[Row]) -> Iterator[str]:
    """With what these rows were measured."""
    facts = dict.fromkeys((row.command, row.machine, row.versions, row.commit or "none", row.date) for row in rows)
    for command, machine, versions, commit, date in facts:
        yield f"- `{command or 'python -m tests.bench'}` on {machine}, {date}, {versions}, commit {commit}"
    yield ""


PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY = ((2**30, "Gi"), (2**20, "Mi"), (2**10, "ki"))


def _value(value: float | None, unit: str) -> str:
    """A value with its unit as people write it; nothing where there is none."""
    if value is None:
        return ""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if unit == "bytes":
        return _prefixed(value, BINARY, "B")
    if value < 10_000:
        return f"{value:.4g}" + (f" {unit}" if "/" in unit or "FLOP" in unit else "")
    return _prefixed(value, PREFIXES, unit if "/" in unit or "FLOP" in unit else "")


def _prefixed(value: float, prefixes: Sequence[tuple[float, str]], unit: str) -> str:
    factor, prefix = next(((f, p) for f, p in prefixes if value >= f), (1, ""))
    return f"{value / factor:.3g} {prefix}{unit}".rstrip()


if __name__ == "__main__":
    main()
