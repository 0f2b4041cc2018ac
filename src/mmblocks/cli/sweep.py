"""Train one trial per combination of values, score each, and compare them in one table and one plot.

  mmblocks sweep RECIPE model/projector=linear,mlp,gated model/pooling=bilinear,average seed=0,1,2 --out DIR
  mmblocks sweep RECIPE model/projector=linear,mlp seed=0,1 --one-at-a-time
  mmblocks sweep RECIPE model/projector=linear,mlp --score 'data=val.json metric=contains'
  mmblocks sweep RECIPE model/projector=linear,mlp --score 'textvqa data=FILE images=DIR limit=500'
  mmblocks sweep RECIPE seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=4
  mmblocks sweep DIR --report                                            the table again; runs nothing

All trials are checked before the first starts. The same command again skips finished trials and resumes the others.
--one-at-a-time takes the first values as the baseline and varies one axis at a time. Words like image=1000x700 are the
images and videos for which visual tokens and FLOPs are counted. Trials are ranked by a score on data that no trial learns:
by default TinyWorld's held-out questions where all data is TinyWorld's, else what the recipe's `evaluate` measures first.
"""

import argparse
from pathlib import Path

from mmblocks.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="a recipe (`mmblocks recipes`, or a YAML file); with --report the sweep's folder"
    )
    parser.add_argument(
        "words", nargs="*", help="KEY=A,B,C to vary, KEY=VALUE for all trials, Hydra's launcher, visuals"
    )
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="vary one axis at a time; the first values are the baseline"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the sweep (default: sweep/ in the recipe's out)"
    )
    parser.add_argument(
        "--score",
        metavar="WORDS",
        help="what ranks the trials: 'loss' (on evaluate.data), 'tiny limit=200', or a task with its settings",
    )
    parser.add_argument("--report", action="store_true", help="compare the finished trials; run nothing")


def run(args: argparse.Namespace) -> int:
    from mmblocks.sweep.comparison import compare_trials, format_markdown, write_comparison
    from mmblocks.sweep.launch import prepare_sweep, run_sweep

    if args.report and args.words:
        raise ConfigError(f"--report runs nothing and takes a sweep's folder alone; leave out {' '.join(args.words)}.")
    folder = Path(args.recipe)
    if not args.report:
        folder = prepare_sweep(
            args.recipe, args.words, one_at_a_time=args.one_at_a_time, out=args.out, score=args.score
        )
        run_sweep(folder, args.words)
    comparison = compare_trials(folder)
    files = write_comparison(comparison, folder)
    print(format_markdown(comparison))
    print(f"the comparison is in {', '.join(map(str, files))}")
    return 1 if comparison.missing else 0  # a trial has no score
