"""Recipes that can be trained, or what one of them composes to.

They are looked up in ./recipes, then among those that ship with mmblocks; a path to a YAML file is taken as it is.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a recipe to compose and print; all are listed without it")
    parser.add_argument("overrides", nargs="*", help="e.g. model/projector=linear stages.0.steps=100")


def run(args: argparse.Namespace) -> int:
    from mmblocks import conf

    if args.recipe:
        print(conf.format_yaml(conf.compose(args.recipe, args.overrides)), end="")
        return 0
    recipes = conf.list_recipes()
    width = max(map(len, recipes), default=0)
    print("\n".join(f"{name:{width}}  {summary}".rstrip() for name, summary in recipes.items()))
    return 0
