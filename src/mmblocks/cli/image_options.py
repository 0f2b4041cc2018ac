"""Options of commands that are shown images: how these are read, where it is not as the model says."""

from __future__ import annotations

import argparse
from typing import Any, get_args, get_type_hints

from mmblocks.image_reading import ImageReading


def add_image_options(parser: argparse.ArgumentParser, said: str) -> None:
    """`said`: what holds without these options."""
    hints = get_type_hints(ImageReading)
    parser.add_argument(
        "--alpha",
        choices=get_args(hints["alpha"]),
        help=f"what is seen of transparent images: a white sheet, or the colours they hide (default: {said})",
    )
    parser.add_argument(
        "--grey",
        type=_parse_grey,
        metavar="full|stretch|LOW,HIGH",
        help="black and white of grey images of more than 8 bits: of their type, of each image, or these numbers "
        f"(default: {said}); write --grey=-100,400 for a number below 0",
    )
    parser.add_argument("--max-px", type=int, metavar="N", help=f"most pixels of an image (default: {said})")


def read_image_options(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `ImageReading` that were given."""
    given = {"alpha": args.alpha, "grey": args.grey, "max_px": args.max_px}
    return {name: value for name, value in given.items() if value is not None}


def _parse_grey(text: str) -> Any:
    """A text, or the numbers in it; what they may be `ImageReading` says."""
    try:
        return [float(number) for number in text.strip("[]").split(",")]
    except ValueError:
        return text
