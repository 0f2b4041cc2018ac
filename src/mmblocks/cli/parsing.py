"""argparse with options between positional arguments, and errors that name only required arguments."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_MISSING = "the following arguments are required: "


class CommandParser(argparse.ArgumentParser):
    """A parser whose `nargs="*"` arguments are optional, and whose errors explain a missing argument."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        action = super().add_argument(*names, **settings)
        if action.nargs == argparse.ZERO_OR_MORE:
            action.required = False  # argparse would require one that has no default
        return action

    def parse_command(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments, with options between overrides (`sweep RECIPE --one-at-a-time a=1,2`).

        argparse allows that where no argument is nested.
        """
        if not arguments:  # argparse would name required options alone, then required positional arguments
            self._refuse_missing([action for action in self._actions if action.required])
        nested = any(action.nargs in (argparse.PARSER, argparse.REMAINDER) for action in self._actions)
        return self.parse_args(arguments) if nested else self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING):
            names = message.removeprefix(_MISSING).split(", ")
            self._refuse_missing([action for action in self._actions if format_argument_name(action) in names])
        super().error(message)

    def _refuse_missing(self, actions: Iterable[argparse.Action]) -> None:
        needed = "; ".join(f"{format_argument_name(action)}: {action.help}" for action in actions)
        if needed:
            self.print_usage(sys.stderr)
            self.exit(2, f"{self.prog} needs {needed}\n")


def format_argument_name(action: argparse.Action) -> str:
    """What usage and errors call an argument."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)
