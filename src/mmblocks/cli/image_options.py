"""Options of commands that read images: how to read them, if not as the model says."""

import argparse
from contextlib import suppress
from typing import get_args, get_type_hints

from mmblocks.image_reading import ImageReading


def add_image_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --alpha, --grey and --max-px. default: what the help says of a missing option."""
    hints = get_type_hints(ImageReading)
    parser.add_argument(
        "--alpha",
        choices=get_args(hints["alpha"]),
        help=f"transparent images: on a white background, or with the colours that they hide (default: {default})",
    )
    parser.add_argument(
        "--grey",
        metavar="full|stretch|LOW,HIGH",
        help="black and white of grey images of more than 8 bits: the full range of the type, the range of each image, or "
        f"these numbers (default: {default}); write --grey=-100,400 for a number below 0",
    )
    parser.add_argument("--max-px", type=int, metavar="N", help=f"most pixels of an image (default: {default})")


def read_image_options(args: argparse.Namespace) -> dict[str, object]:
    """The settings of `ImageReading` that the user gave; `ImageReading` checks their values."""
    grey = args.grey
    with suppress(AttributeError, ValueError):  # no option; a word instead of numbers
        grey = [float(number) for number in args.grey.strip("[]").split(",")]
    settings = {"alpha": args.alpha, "grey": grey, "max_px": args.max_px}
    return {name: value for name, value in settings.items() if value is not None}
