"""Measure mmblocks side by side with transformers' LlavaOnevision, with the same weights, in one process."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.bench.rows import Row
    from mmblocks.bench.run import Run

EXAMPLES = """\
examples:
  mmblocks bench counters                       FLOPs, bytes and copies; the same on every machine
  mmblocks bench prefill train --size small     times, one thread, processor time
  mmblocks bench --gpu 1 --out gpu.csv          the first of four commands for a GPU, each under ten minutes
  mmblocks bench --gpu 1 --tiny                 a proof on the CPU that it runs

Outputs are compared first; what does not agree is not timed. A ratio above 1 says that mmblocks is better.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="benchmarks to run; without one they are listed")
    parser.add_argument("--size", default="tiny", help="size of the model: tiny, small, 0_5b or 7b (default: tiny)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="CSV file to write rows to; other suites' rows are kept"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are kept (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--tiny", action="store_true", help="the least model and inputs: does it run?")
    parser.add_argument("--gpu", type=int, metavar="N", help="one of the four commands for a GPU, 1 to 4")
    parser.add_argument("--minutes", type=float, default=9.5, help="begin nothing that would end later (with --gpu)")


def run(args: argparse.Namespace) -> int:
    if not args.suites and args.gpu is None:
        return _list()
    if args.suites and args.gpu is not None:
        raise ConfigError("--gpu says which suites are run; name none beside it.")
    return _gpu(args) if args.gpu is not None else _suites(args)


def _list() -> int:
    from mmblocks.bench.suites import SUITES

    print("\n".join(f"{name:16} {what}" for name, what in SUITES.items()))
    return 0


def _suites(args: argparse.Namespace) -> int:
    from mmblocks.bench.suites import measured

    return _show(measured(args.suites, _run_of(args), args.out))


def _run_of(args: argparse.Namespace) -> Run:
    import torch

    from mmblocks.bench.run import Run
    from mmblocks.bench.sizes import scale_of

    if args.repeats < 1:
        raise ConfigError(f"--repeats {args.repeats}: a median needs at least one.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device.")
    scale_of(args.size)
    words = [*args.suites, "--size", args.size, "--repeats", str(args.repeats)]
    words += ["--device", args.device] * (args.device != "cpu") + ["--tiny"] * args.tiny
    on_gpu = args.device != "cpu"
    return Run(
        size=args.size,
        device=torch.device(args.device),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        repeats=args.repeats,
        warmups=3 if on_gpu else 0 if args.tiny else 1,
        input_sets=1 if args.tiny else 4 if on_gpu else 2,
        tiny=args.tiny,
        command=shlex.join(["mmblocks", "bench", *words]),
    )


def _gpu(args: argparse.Namespace) -> int:
    """Correctness first: where an op is off, nothing is measured."""
    from mmblocks.bench.h200 import run_command, run_of
    from mmblocks.cli import main

    settings = run_of(args.gpu, tiny=args.tiny, limit_s=60 * args.minutes)
    if args.gpu == 1 and (failed := main(["doctor", "--selftest"])):
        return failed
    return _show(run_command(args.gpu, settings, args.out))


def _show(found: Iterable[Row | str]) -> int:
    """Print what comes as it comes. 1 where something could not be measured."""
    missed = False
    for told in found:
        missed |= isinstance(told, str) and "the order of ways" not in told
        print(told if isinstance(told, str) else _line(told), flush=True)
    return int(missed)


def _line(row: Row) -> str:
    against = (
        f"{row.peer_setting}{f' ({row.settings})' if row.settings else ''}" if row.peer is not None else row.settings
    )
    numbers = " ".join(f"{value:.4g}" for value in (row.ours, row.peer) if value is not None)
    ratio = "" if row.ratio is None else f"  x{row.ratio:.2f}"
    share = "" if row.floor_share is None else f"  {row.floor_share:.0%} of the floor"
    return f"{row.suite} {row.size}  {row.scenario}  {row.quantity}: {numbers} {row.unit}{ratio}{share}  {against}".rstrip()
