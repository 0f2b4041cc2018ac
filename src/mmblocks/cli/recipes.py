"""List all recipes, or print one recipe with all its settings.

A recipe is searched in ./recipes, then among those of mmblocks; it may also be a path to a YAML file.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a recipe to print (default: list all recipes)")
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
