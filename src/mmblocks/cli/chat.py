"""`mmblocks chat`: ask a model about images and videos, once or turn by turn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmblocks.cli.image_options import add_image_options, read_image_options
from mmblocks.cli.line_editing import edit_lines
from mmblocks.cli.model_options import MODEL_HELP, add_base_option, add_placement_options

if TYPE_CHECKING:
    from mmblocks.chat import Chat
    from mmblocks.conversation import Visual
    from mmblocks.image_reading import ImageReading

HELP = "commands: /image PATH and /video PATH add to your next message, /new starts a new chat, /quit ends"
BUNDLED = """\
The bundled tiny model answers. It knows drawings of coloured shapes only; what it says about photographs means nothing.
For photographs, load a trained model: `mmblocks chat --model MODEL`, a folder or a repository of the Hugging Face hub, such
as llava-hf/llava-onevision-qwen2-0.5b-ov-hf."""


class _VisualAction(argparse.Action):
    """Collects --image and --video in the order in which they were written."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        kind = str(option_string).lstrip("-")
        namespace.visuals = [*namespace.visuals, *((kind, path) for path in values or ())]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help=MODEL_HELP)
    for kind in ("image", "video"):
        parser.add_argument(
            f"--{kind}",
            nargs="+",
            action=_VisualAction,
            dest="visuals",
            default=[],
            metavar="FILE",
            help=f"{kind}s to show",
        )
    parser.add_argument(
        "--allow-urls",
        nargs="*",
        metavar="HOST",
        help="fetch images and videos that are http(s) URLs, from public addresses and from these hosts (default: no URLs)",
    )
    parser.add_argument("--ask", help="ask this question, print the answer and exit")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--seed", type=int, help="seed of sampling")
    add_base_option(parser)
    add_placement_options(parser)
    add_image_options(parser, "as the model says")


def run(args: argparse.Namespace) -> int:
    from mmblocks.assets import find_tiny_model
    from mmblocks.chat import Chat
    from mmblocks.model.generate import Decoding
    from mmblocks.model.loading import load_located, locate_model, read_stored_images

    decoding = Decoding(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)
    located, options = locate_model(args.model or find_tiny_model(), args.base), read_image_options(args)
    images = read_stored_images(located).with_changes(options)
    visuals = [_open_visual(kind, path, images, args.allow_urls) for kind, path in args.visuals]
    model = load_located(located, dtype=args.dtype, device=args.device, bits=args.bits, images=options)
    chat = Chat(model, system=args.system, decoding=decoding)
    is_bundled = located.folder.resolve() == find_tiny_model().resolve()
    if args.ask is not None:
        if is_bundled:
            print(BUNDLED, file=sys.stderr)  # stdout has the answer alone
        _print_answer(chat, visuals, args.ask)
        return 0
    print(f"{BUNDLED}\n\n{HELP}" if is_bundled else HELP)
    with edit_lines("chat_history"):
        _run_conversation(chat, visuals, args.allow_urls)
    return 0


def _run_conversation(chat: Chat, visuals: list[Visual], url_hosts: Sequence[str] | None) -> None:
    from mmblocks.errors import DataError

    while True:
        try:
            line = input("you: ").strip()
        except EOFError:
            return
        command, _, argument = line.partition(" ")
        try:
            if command in ("/image", "/video"):
                visuals.append(_open_visual(command[1:], argument.strip(), chat.model.images, url_hosts))
            elif line == "/quit":
                return
            elif command == "/new":
                chat.reset_messages()
                visuals.clear()
            elif line.startswith("/"):
                print(HELP)
            elif line:
                _print_answer(chat, visuals, line)
                visuals.clear()
        except DataError as fault:
            print(f"! {fault}")
            visuals.clear()


def _print_answer(chat: Chat, visuals: list[Visual], text: str) -> None:
    for piece in chat.stream(*visuals, text):
        print(piece, end="", flush=True)
    print()


def _open_visual(kind: str, source: str, images: ImageReading, url_hosts: Sequence[str] | None) -> Visual:
    """url_hosts: None where URLs are refused, else the hosts that may be private."""
    from mmblocks.chat import image, video
    from mmblocks.data.media.visuals import read_visual_shape

    allowed = False if url_hosts is None else url_hosts
    visual = image(source, allow_urls=allowed) if kind == "image" else video(source, allow_urls=allowed)
    read_visual_shape(visual, images=images)  # an unreadable file is an error here, before a model is loaded
    return visual
