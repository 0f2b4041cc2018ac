"""Print what makes Tab complete commands, recipes, components and overrides in bash or zsh.

  mmblocks completion bash > ~/.local/share/bash-completion/completions/mmblocks
  mmblocks completion zsh > "${fpath[1]}/_mmblocks"                              or another folder of fpath

or for the running shell alone: eval "$(mmblocks completion bash)"
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from argcomplete.finders import CompletionFinder
from argcomplete.shell_integration import shellcode

from mmblocks.cli import COMMANDS

if TYPE_CHECKING:
    from mmblocks.cli.suggestions import Suggest

SHELLS = ("bash", "zsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh")


def run(args: argparse.Namespace) -> int:
    print(shellcode(["mmblocks"], shell=args.shell), end="")
    return 0


def answer_shell() -> None:
    """Tell the shell what may stand at its cursor, and end the process. The shell's words are in the environment."""
    typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split()
    _PositionalFinder()(make_parser(typed[1] if len(typed) > 1 else ""), always_complete_options=False)


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """All commands as one parser. Only the chosen one has its arguments: the others' modules stay unread."""
    top = argparse.ArgumentParser(prog="mmblocks")
    top.add_argument("--version", action="store_true")
    commands = top.add_subparsers()
    for command in COMMANDS.values():
        parser = commands.add_parser(command.name, help=command.help)
        if command.name == chosen:
            importlib.import_module(command.module).add_arguments(parser)
            _attach_suggestions(chosen, parser)
    return top


def _attach_suggestions(command: str, parser: argparse.ArgumentParser) -> None:
    from mmblocks.cli.suggestions import SUGGESTIONS

    for action in parser._actions:
        if (command, action.dest) in SUGGESTIONS:
            vars(action)["completer"] = _make_completer(SUGGESTIONS[command, action.dest])  # where argcomplete looks


def _make_completer(suggest: Suggest) -> Callable[..., Any]:
    return lambda prefix, parsed_args, **_: suggest(prefix, parsed_args)


class _PositionalFinder(CompletionFinder):
    """argcomplete, which by itself offers no positional arguments behind an option (`sweep RECIPE --star a=1`)."""

    def collect_completions(self, active_parsers: list[Any], parsed_args: argparse.Namespace, cword_prefix: str) -> Any:
        parser = active_parsers[-1]
        if not parser.active_actions:
            parser.active_actions = [a for a in parser._get_positional_actions() if a.nargs == argparse.ZERO_OR_MORE]
        return super().collect_completions(active_parsers, parsed_args, cword_prefix)
