"""Replace parts of a saved model and keep the rest, with a record of every parameter.

mmblocks swap MODEL projector=gated --out NEW            a new projector, drawn from --seed
mmblocks swap MODEL encoder.image_px=448 --out NEW       the same encoder for larger pictures, its positions resized
mmblocks swap MODEL tokenizer.image=pad --out NEW        another way to show pictures

mmblocks swap MODEL images.alpha=drop --out NEW          the same model that reads images in another way

Slots: encoder, projector, pooling, backbone, template, tokenizer.image, tokenizer.multi_image, tokenizer.video, images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.model.swapping.transplant import Ledger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="MODEL", type=Path, help="folder of a model saved by mmblocks")
    parser.add_argument("changes", nargs="*", metavar="SLOT=NAME", help="or SLOT.SETTING=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn for the new parts (default: 0)")
    parser.add_argument(
        "--weights",
        choices=("pretrained", "random"),
        default="pretrained",
        help="what a new encoder or backbone starts from where it names a checkpoint (default: pretrained)",
    )


def run(arguments: argparse.Namespace) -> int:
    from mmblocks.model.checkpoint import at_home, load, read_spec
    from mmblocks.model.convert.weights import stored_dtype
    from mmblocks.model.swapping.swap import planned, save_swapped, swap

    changes = changes_of(arguments.changes)
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists; name a folder that does not.")
    planned(at_home(read_spec(arguments.checkpoint), arguments.checkpoint), changes)
    model = load(arguments.checkpoint, dtype=stored_dtype(arguments.checkpoint))
    swapped = swap(model, changes, seed=arguments.seed, weights=arguments.weights)
    save_swapped(swapped, arguments.out, arguments.checkpoint)
    print("\n".join(told(swapped.ledger)))
    print(f"written  {arguments.out}")
    return 0


def told(ledger: Ledger) -> Iterator[str]:
    """A line for each fate of each part, and the sums over all parameters."""
    from mmblocks.model.spec import PARTS
    from mmblocks.model.swapping.transplant import FATES

    for part in PARTS:
        for fate in FATES:
            lines = [line for line in ledger.lines if (line.part, line.fate) == (part, fate)]
            if lines:
                yield f"{fate:8} {part:10} {ledger.count(fate, part):>15,} parameters in {len(lines)} tensors"
    dropped = ledger.count("dropped")
    sums = " + ".join(f"{ledger.count(fate):,} {fate}" for fate in FATES[:-1])
    yield f"after    {ledger.after:,} parameters = {sums}"
    yield f"before   {ledger.before:,} parameters, {dropped:,} of them dropped"


def changes_of(arguments: list[str]) -> dict[str, Any]:
    """SLOT=NAME and SLOT.SETTING=VALUE as a mapping; values are json where they can be, else text."""
    if faults := [argument for argument in arguments if "=" not in argument]:
        raise ConfigError(f"{', '.join(map(repr, faults))}: write SLOT=NAME or SLOT.SETTING=VALUE.")
    return {key: _value(text) for key, _, text in (argument.partition("=") for argument in arguments)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
