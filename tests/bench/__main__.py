"""Measure mmblocks side by side with transformers' LlavaOnevision, with the same weights, in one process.

Run from the root of a checkout: `python -m tests.bench SUITE`.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from mmblocks.errors import ConfigError, MMBlocksError
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import find_scale
from tests.bench.suites.suites import SUITES, run_suites

PROGRAM = ("python", "-m", "tests.bench")
EXAMPLES = """\
examples:
  python -m tests.bench counters                    FLOPs, bytes and copies; the same on every machine
  python -m tests.bench prefill train --size small  times, one thread, processor time
  python -m tests.bench ceil attention pool_kernel layer_kernels pool --device cuda --size 0_5b --out docs/benchmarks/gpu.csv

Outputs are compared first; what does not agree is not timed. A ratio above 1 says that mmblocks is better.
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=" ".join(PROGRAM),
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="benchmarks to run; without one they are listed")
    parser.add_argument("--size", default="tiny", help="size of the model: tiny, small, 0_5b or 7b (default: tiny)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file to write rows to; rows of other suites stay")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are kept (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--tiny", action="store_true", help="the smallest model and inputs: does it run?")
    parser.add_argument("--minutes", type=float, help="start no case that would end after so many minutes")
    return parser


def make_run(args: argparse.Namespace) -> Run:
    """Settings of a run. Raises `ConfigError` for a size, device or number of rounds that cannot be."""
    if args.repeats < 1:
        raise ConfigError(f"--repeats {args.repeats}: a median needs at least one.")
    on_gpu = args.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError(f"--device {args.device}: torch sees no CUDA device.")
    find_scale(args.size)
    words = [*args.suites, "--size", args.size, "--repeats", str(args.repeats)]
    words += ["--device", args.device] * on_gpu + ["--tiny"] * args.tiny
    return Run(
        size=args.size,
        device=torch.device(args.device),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        repeats=args.repeats,
        warmups=3 if on_gpu else 0 if args.tiny else 1,
        input_sets=1 if args.tiny else 4 if on_gpu else 2,
        tiny=args.tiny,
        command=shlex.join([*PROGRAM, *words]),
        ends=float("inf") if args.minutes is None else time.monotonic() + 60 * args.minutes,
    )


def print_rows(results: Iterable[Row | str]) -> bool:
    """Print rows as they come. False where something could not be measured."""
    complete = True
    for result in results:
        complete &= isinstance(result, Row)
        print(format_row(result) if isinstance(result, Row) else result, flush=True)
    return complete


def format_row(row: Row) -> str:
    against = (
        f"{row.peer_setting}{f' ({row.settings})' if row.settings else ''}" if row.peer is not None else row.settings
    )
    numbers = " ".join(f"{value:.4g}" for value in (row.ours, row.peer) if value is not None)
    ratio = "" if row.ratio is None else f"  x{row.ratio:.2f}"
    share = "" if row.floor_share is None else f"  {row.floor_share:.0%} of the floor"
    return f"{row.suite} {row.size}  {row.scenario}  {row.quantity}: {numbers} {row.unit}{ratio}{share}  {against}".rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """0: all was measured; 1: something was not; 2: the arguments cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = make_parser().parse_args(argv)
    if not args.suites:
        print("\n".join(f"{name:16} {what}" for name, what in SUITES.items()))
        return 0
    try:
        return int(not print_rows(run_suites(args.suites, make_run(args), args.out)))
    except MMBlocksError as error:
        print(f"{' '.join(PROGRAM)}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main())
