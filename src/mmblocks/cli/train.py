"""Train a recipe, or go on where it stopped.

  mmblocks train RECIPE model/projector=linear model.pooling.stride=3 seed=1
  mmblocks train RECIPE -m model/projector=mlp,linear seed=0,1      one run per combination

GROUP=NAME chooses a component, KEY=VALUE changes a setting; `mmblocks recipes RECIPE` shows all keys. With -m,
Hydra's launchers can be used: hydra/launcher=joblib.
"""

from __future__ import annotations

import argparse
import logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a name from `mmblocks recipes`, or a path to a YAML file")
    parser.add_argument("overrides", nargs="*", help="GROUP=NAME or KEY=VALUE")
    parser.add_argument("-m", "--multirun", action="store_true", help="one run per combination of the values given")


def run(args: argparse.Namespace) -> int:
    from mmblocks import conf, train

    if args.multirun:
        return conf.run_sweep(args.recipe, args.overrides)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = train.run(conf.compose(args.recipe, args.overrides))
    print(f"the model is in {model}")
    return 0
