"""The command `mmblocks`: a table of commands, each in its own module, which is imported when the command runs."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from mmblocks import __version__
from mmblocks.cli.examples import format_example
from mmblocks.cli.logs import log_to_stderr
from mmblocks.cli.parsing import CommandParser
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.settings import format_suggestion


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, a line of help, and the module here that has its `add_arguments(parser)` and `run(args)`."""

    name: str
    help: str
    file: str = ""

    def import_module(self) -> ModuleType:
        return importlib.import_module(f"mmblocks.cli.{self.file or self.name}")

    def make_parser(self) -> CommandParser:
        module = self.import_module()
        parser = CommandParser(
            prog=f"mmblocks {self.name}",
            description=module.__doc__,
            epilog=format_example(self.name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        return parser


COMMANDS = {
    c.name: c
    for c in (
        Command("demo", "ask the small bundled model; needs no network and no GPU"),
        Command("list", "components and complete systems, by kind", file="listing"),
        Command("show", "one component: settings, types, defaults and source; or one system: its components"),
        Command("recipes", "all recipes, or one recipe with all its settings"),
        Command("check", "list every reason why a composition cannot work"),
        Command("plan", "tokens, compute and memory of a model for given images and videos, or of a training"),
        Command("inspect", "statistics of a recipe's data, and single records as the model sees them"),
        Command("train", "train a recipe, or resume a run"),
        Command("sweep", "train one trial per combination of values, and compare them in a table and a plot"),
        Command("diff", "differences between two runs or two models"),
        Command("eval", "evaluate a model on tasks"),
        Command("chat", "ask a model about images and videos"),
        Command("serve", "serve a model: the routes of OpenAI's API with images and videos, and a page"),
        Command("convert", "import and export checkpoints of transformers and LLaVA"),
        Command("swap", "replace components of a saved model and report what was kept"),
        Command("new", "create a package with a component of your own, its test and its entry point"),
        Command("doctor", "versions, devices and fast backends of this machine"),
        Command("completion", "print the script for Tab completion in bash or zsh"),
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. MMBLOCKS_DEBUG=1 shows tracebacks.

    0: success; 1: the command failed; 2: the arguments or settings are wrong; 70: a bug in mmblocks.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("MMBLOCKS_DEBUG") == "1"
    try:
        with log_to_stderr():
            return _run_command(arguments)
    except MMBlocksError as error:
        if debug:
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
    except Exception as error:
        from mmblocks.cli.mistakes import EXIT_CODE, format_mistake
        from mmblocks.versions import describe_missing_dependency

        missing = describe_missing_dependency(error) if isinstance(error, ImportError) else None
        if debug and missing is None:
            raise
        message = format_mistake(error, arguments) if missing is None else f"mmblocks: {missing}"
        print(message, file=sys.stderr)
        return EXIT_CODE if missing is None else 1


def _run_command(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # the shell completes a command line
        importlib.import_module("mmblocks.cli.completion").answer_shell()
    if not arguments or arguments[0].startswith("-"):
        width = max(map(len, COMMANDS))
        table = "\n".join(f"  {c.name:{width}}  {c.help}" for c in COMMANDS.values())
        top = argparse.ArgumentParser(
            prog="mmblocks",
            usage="mmblocks COMMAND ...",
            description="Compose, train, talk to and export vision-language models.",
            epilog=f"commands:\n{table}\n\n`mmblocks COMMAND --help` shows what a command takes.\n\n{format_example('chat')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        top.add_argument("--version", action="version", version=f"mmblocks {__version__}")
        top.parse_args(arguments)
        top.print_help()
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"no command is called {name!r}.{format_suggestion(name, COMMANDS)}")
    return COMMANDS[name].import_module().run(COMMANDS[name].make_parser().parse_command(rest))
