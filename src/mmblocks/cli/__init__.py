"""The command `mmblocks`: a table of commands, each in its own module, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from mmblocks import __version__
from mmblocks.cli.examples import show_example
from mmblocks.cli.logs import log_to_stderr
from mmblocks.cli.parsing import CommandParser
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.settings import format_suggestion


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, a line of help, and the module here with its `add_arguments(parser)` and `run(args)`."""

    name: str
    help: str
    file: str = ""

    @property
    def module(self) -> str:
        return f"mmblocks.cli.{self.file or self.name}"


COMMANDS = {
    c.name: c
    for c in (
        Command("demo", "ask the small model that ships with mmblocks; needs nothing else"),
        Command("list", "components and whole systems that can be combined, by kind", file="listing"),
        Command("show", "one component: its settings, types, defaults and source; or one system: its parts"),
        Command("recipes", "recipes that can be trained, or what one of them composes to"),
        Command("check", "every reason why a composition cannot work"),
        Command("plan", "tokens, compute and memory of a composition for given images and clips"),
        Command("inspect", "what a recipe's data holds, and single records as the model will see them"),
        Command("train", "train a recipe, or go on where it stopped"),
        Command("sweep", "train one run per combination of values, and compare them in a table and an image"),
        Command("diff", "what tells two runs or two models apart"),
        Command("eval", "measure a model on tasks"),
        Command("chat", "talk with a model about images and clips"),
        Command("convert", "read and write the layouts of transformers and LLaVA"),
        Command("swap", "other parts for a saved model, and a record of what was kept"),
        Command("new", "a package with a component of your own, its test and its entry point"),
        Command("doctor", "versions, devices and fast paths of this machine"),
        Command("completion", "what makes Tab complete commands, recipes and overrides in bash or zsh"),
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. 0: done; 1: it failed; 2: it was asked for something that cannot be; 70: a mistake of mmblocks.

    MMBLOCKS_DEBUG=1 traces.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with log_to_stderr():
            return _run_command(arguments)
    except MMBlocksError as error:
        if os.environ.get("MMBLOCKS_DEBUG") == "1":
            raise
        print(f"mmblocks: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # the reader of our output has left, e.g. `mmblocks list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"mmblocks: {stop}", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except ImportError as error:
        from mmblocks.versions import describe_missing_dependency

        if (line := describe_missing_dependency(error)) is None:
            return _report_unforeseen(error, arguments)
        print(f"mmblocks: {line}", file=sys.stderr)
        return 1
    except Exception as error:
        return _report_unforeseen(error, arguments)


def _report_unforeseen(error: Exception, arguments: Sequence[str]) -> int:
    if os.environ.get("MMBLOCKS_DEBUG") == "1":
        raise error
    from mmblocks.cli.mistakes import EXIT_CODE, format_mistake

    print(format_mistake(error, arguments), file=sys.stderr)
    return EXIT_CODE


def _run_command(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may stand at its cursor
        importlib.import_module("mmblocks.cli.completion").answer_shell()
    top = _top_parser()
    if not arguments or arguments[0].startswith("-"):
        top.parse_args(arguments)
        top.print_help()
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"no command is called {name!r}.{format_suggestion(name, COMMANDS)}")
    module = importlib.import_module(COMMANDS[name].module)
    return module.run(_parser_of(COMMANDS[name], module).parse_command(rest))


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {c.name:{width}}  {c.help}" for c in COMMANDS.values())
    parser = argparse.ArgumentParser(
        prog="mmblocks",
        usage="mmblocks COMMAND ...",
        description="Compose, train, talk to and export vision-language models.",
        epilog=f"commands:\n{table}\n\n`mmblocks COMMAND --help` shows what a command takes.\n\n{show_example('chat')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmblocks {__version__}")
    return parser


def _parser_of(command: Command, module: ModuleType) -> CommandParser:
    parser = CommandParser(
        prog=f"mmblocks {command.name}",
        description=module.__doc__,
        epilog=show_example(command.name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser
