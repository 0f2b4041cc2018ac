"""Train one run per combination of values, score each, and compare them in one table and one image.

  mmblocks sweep RECIPE model/projector=linear,mlp,gated model/pooling=bilinear,average seed=0,1,2 --out DIR
  mmblocks sweep RECIPE model/projector=linear,mlp seed=0,1 --star       one axis at a time, from the first values
  mmblocks sweep RECIPE seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=4
  mmblocks sweep DIR --report                                            the table again, without running anything

All runs are checked before the first starts. The same command again skips what has finished and goes on with the rest.
Words like image=1000x700 name the images and videos for which visual tokens and FLOPs are counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file); with --report the sweep's folder"
    )
    parser.add_argument("words", nargs="*", help="KEY=A,B,C to vary, KEY=VALUE for all runs, Hydra's launcher, visuals")
    parser.add_argument("--star", action="store_true", help="vary one axis at a time, all from their first values")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the sweep (default: sweep/ in the recipe's out)"
    )
    parser.add_argument(
        "--score", choices=("tiny", "loss"), help="TinyWorld's exact answers, or the last training loss"
    )
    parser.add_argument("--samples", type=int, default=200, help="questions per task of TinyWorld (default 200)")
    parser.add_argument("--report", action="store_true", help="compare what there is, run nothing")


def run(args: argparse.Namespace) -> int:
    if args.report:
        return _print_comparison(_folder(args))
    from mmblocks.sweep.launch import prepare_sweep, run_sweep

    folder = prepare_sweep(
        args.recipe, args.words, arms_only=args.star, out=args.out, score=args.score, samples=args.samples
    )
    run_sweep(folder, args.words)
    return _print_comparison(folder)


def _folder(args: argparse.Namespace) -> Path:
    from mmblocks.errors import ConfigError

    if args.words:
        raise ConfigError(f"--report runs nothing and takes a sweep's folder alone; leave out {' '.join(args.words)}.")
    return Path(args.recipe)


def _print_comparison(folder: Path) -> int:
    """Write and print the comparison; 1 where a trial has no score."""
    from mmblocks.sweep.comparison import compare_trials, format_markdown, write_comparison

    comparison = compare_trials(folder)
    files = write_comparison(comparison, folder)
    print(format_markdown(comparison))
    print(f"the comparison is in {', '.join(map(str, files))}")
    return 1 if comparison.missing else 0
