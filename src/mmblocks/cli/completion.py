"""Print the script that makes Tab complete commands, recipes, components and overrides in bash or zsh.

  mmblocks completion bash > ~/.local/share/bash-completion/completions/mmblocks
  mmblocks completion zsh > "${fpath[1]}/_mmblocks"                              or another folder of fpath

For the running shell alone: eval "$(mmblocks completion bash)"
"""

import argparse
import os
from typing import Any

from argcomplete.finders import CompletionFinder
from argcomplete.shell_integration import shellcode

from mmblocks.cli import COMMANDS

SHELLS = ("bash", "zsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh")


def run(args: argparse.Namespace) -> int:
    print(shellcode(["mmblocks"], shell=args.shell), end="")
    return 0


def answer_shell() -> None:
    """Print completions of the command line in the shell's environment variables, and end the process."""
    typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split()
    _PositionalFinder()(make_parser(typed[1] if len(typed) > 1 else ""), always_complete_options=False)


def make_parser(chosen: str) -> argparse.ArgumentParser:
    """All commands as one parser. Only the chosen one has its arguments: the modules of the others are not imported."""
    top = argparse.ArgumentParser(prog="mmblocks")
    top.add_argument("--version", action="store_true")
    commands = top.add_subparsers()
    for command in COMMANDS.values():
        parser = commands.add_parser(command.name, help=command.help)
        if command.name != chosen:
            continue
        from mmblocks.cli.suggestions import SUGGESTIONS

        command.import_module().add_arguments(parser)
        for action in parser._actions:
            if suggest := SUGGESTIONS.get((chosen, action.dest)):
                # The attribute in which argcomplete looks for it.
                vars(action)["completer"] = lambda prefix, parsed_args, _suggest=suggest, **_: _suggest(
                    prefix, parsed_args
                )
    return top


class _PositionalFinder(CompletionFinder):
    """argcomplete, which by itself completes no positional argument after an option (`sweep RECIPE --one-at-a-time a=1`)."""

    def collect_completions(self, active_parsers: list[Any], parsed_args: argparse.Namespace, cword_prefix: str) -> Any:
        parser = active_parsers[-1]
        if not parser.active_actions:
            parser.active_actions = [a for a in parser._get_positional_actions() if a.nargs == argparse.ZERO_OR_MORE]
        return super().collect_completions(active_parsers, parsed_args, cword_prefix)
