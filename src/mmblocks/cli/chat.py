"""`mmblocks chat`: ask a model about images and videos, once or turn by turn."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.cli.image_options import add_image_options, read_image_options
from mmblocks.cli.line_editing import edit_lines

if TYPE_CHECKING:
    from mmblocks.chat import Chat
    from mmblocks.conversation import Visual
    from mmblocks.image_reading import ImageReading

HELP = "commands: /image PATH and /video PATH show something with your next words, /new begins again, /quit ends"
BUNDLED = """\
The bundled tiny model answers. It knows drawings of coloured shapes only; what it says about photographs means nothing.
For photographs, load a trained model: `mmblocks chat --model FOLDER`. `mmblocks convert FROM FOLDER` makes such a folder
from a checkpoint of the LLaVA family, `mmblocks train RECIPE` from your data."""


class _VisualAction(argparse.Action):
    """Collects --image and --video in the order in which they were written."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        kind = str(option_string).lstrip("-")
        namespace.visuals = [*namespace.visuals, *((kind, path) for path in values)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="folder of a model (default: the bundled tiny model)")
    parser.add_argument(
        "--image", nargs="+", action=_VisualAction, dest="visuals", default=[], metavar="FILE", help="images to show"
    )
    parser.add_argument(
        "--video", nargs="+", action=_VisualAction, dest="visuals", default=[], metavar="FILE", help="clips to show"
    )
    parser.add_argument("--ask", help="ask this, print the answer and end")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--seed", type=int, help="seed of sampling")
    add_image_options(parser, "as the model says")


def run(args: argparse.Namespace) -> int:
    from mmblocks.assets import find_tiny_model
    from mmblocks.chat import Chat
    from mmblocks.model.checkpoint import load, read_spec
    from mmblocks.model.generate import Decoding

    decoding = Decoding(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)
    folder, options = args.model or find_tiny_model(), read_image_options(args)
    images = read_spec(folder).images.with_changes(options)
    shown = [_open_visual(kind, path, images) for kind, path in args.visuals]
    chat = Chat(load(folder, images=options), system=args.system, decoding=decoding)
    is_bundled = folder.resolve() == find_tiny_model().resolve()
    if args.ask is not None:
        if is_bundled:
            print(BUNDLED, file=sys.stderr)  # stdout has the answer alone
        return _print_answer(chat, shown, args.ask)
    print(f"{BUNDLED}\n\n{HELP}" if is_bundled else HELP)
    with edit_lines("chat_history"):
        return _run_conversation(chat, shown)


def _run_conversation(chat: Chat, shown: list[Visual]) -> int:
    from mmblocks.errors import DataError

    while (line := _read_line()) is not None and line != "/quit":
        command, _, rest = line.partition(" ")
        try:
            if command in ("/image", "/video"):
                shown.append(_open_visual(command[1:], rest.strip(), chat.model.images))
            elif command == "/new":
                chat.reset_messages()
                shown.clear()
            elif line.startswith("/"):
                print(HELP)
            elif line:
                _print_answer(chat, shown, line)
                shown.clear()
        except DataError as fault:
            print(f"! {fault}")
            shown.clear()
    return 0


def _read_line() -> str | None:
    try:
        return input("you: ").strip()
    except EOFError:
        return None


def _print_answer(chat: Chat, shown: list[Visual], text: str) -> int:
    for piece in chat.stream(*shown, text):
        print(piece, end="", flush=True)
    print()
    return 0


def _open_visual(kind: str, path: str, images: ImageReading) -> Visual:
    from mmblocks.chat import image, video
    from mmblocks.data.media.visuals import read_visual_shape

    visual = image(path) if kind == "image" else video(path)
    read_visual_shape(visual, images=images)  # says at once when the file cannot be read, before a model is
    return visual
