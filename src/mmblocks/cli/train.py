"""Train a recipe, or resume a run that was stopped.

  mmblocks train RECIPE model/projector=linear model.pooling.stride=3 seed=1
  mmblocks train RECIPE stages.0.data.0.images=photos stages.align.steps=100
  torchrun --nproc-per-node 8 -m mmblocks train RECIPE

GROUP=NAME chooses a component, KEY=VALUE changes a setting, ~KEY removes one. `mmblocks recipes RECIPE` shows all keys.
Stages and sources are named by number or by name. `mmblocks sweep` trains one trial per combination of several values.
"""

import argparse
import os

from mmblocks.cli.logs import show_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a name from `mmblocks recipes`, or a path to a YAML file")
    parser.add_argument("overrides", nargs="*", help="GROUP=NAME or KEY=VALUE")
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)  # Hydra's users will try it


def run(args: argparse.Namespace) -> int:
    from mmblocks import conf, train
    from mmblocks.errors import ConfigError

    if args.multirun:
        words = " ".join([args.recipe, *args.overrides])
        raise ConfigError(f"train runs one recipe; for one run per combination write: mmblocks sweep {words}")
    is_first = os.environ.get("RANK", "0") == "0"  # torchrun numbers the processes of a run
    if is_first:
        show_progress()
    model = train.run(conf.compose_run(args.recipe, args.overrides))
    if is_first:
        print(f"the model is in {model}")
    return 0
