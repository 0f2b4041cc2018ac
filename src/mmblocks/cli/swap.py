"""Replace components of a saved model, keep the others, and report what became of every parameter.

mmblocks swap MODEL projector=gated --out NEW            a new projector with random weights (--seed)
mmblocks swap MODEL encoder.image_px=448 --out NEW       the same encoder for larger images; position embeddings are resized
mmblocks swap MODEL tokenizer.image=pad --out NEW        another visual tokenizer for single images
mmblocks swap MODEL images.alpha=drop --out NEW          the same model, with images read in another way

Slots: encoder, projector, pooling, backbone, template, tokenizer.image, tokenizer.multi_image, tokenizer.video, images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.cli.model_options import MODEL_FORMS
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.model.swapping.transplant import TransferReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="MODEL", help=MODEL_FORMS)
    parser.add_argument("changes", nargs="*", metavar="SLOT=NAME", help="or SLOT.SETTING=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new random weights (default: 0)")
    parser.add_argument(
        "--weights",
        choices=("pretrained", "random"),
        default="pretrained",
        help="initial weights of a new encoder or backbone that names a checkpoint (default: pretrained)",
    )


def run(arguments: argparse.Namespace) -> int:
    from mmblocks.model.checkpoint import localise_spec, read_spec
    from mmblocks.model.loading import OURS, load_located, locate_model
    from mmblocks.model.swapping.swap import plan_swap, save_swap_result, swap

    changes = read_changes(arguments.changes)
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists; name a folder that does not.")
    located = locate_model(arguments.checkpoint)
    if located.layout == OURS:  # faults are found before weights are read
        plan_swap(localise_spec(read_spec(located.folder), located.folder), changes)
    model = load_located(located, dtype=None)
    swapped = swap(model, changes, seed=arguments.seed, weights=arguments.weights)
    save_swap_result(swapped, arguments.out, located.folder)
    print("\n".join(format_ledger(swapped.ledger)))
    print(f"written  {arguments.out}")
    return 0


def format_ledger(ledger: TransferReport) -> Iterator[str]:
    """One line per part and fate, and the sums over all parameters."""
    from mmblocks.model.spec import PARTS
    from mmblocks.model.swapping.transplant import FATES

    for part in PARTS:
        for fate in FATES:
            lines = [line for line in ledger.lines if (line.part, line.fate) == (part, fate)]
            if lines:
                yield f"{fate:8} {part:14} {ledger.count_parameters(fate, part):>11,} parameters in {len(lines)} tensors"
    dropped = ledger.count_parameters("dropped")
    sums = " + ".join(f"{ledger.count_parameters(fate):,} {fate}" for fate in FATES[:-1])
    yield f"after    {ledger.after:,} parameters = {sums}"
    yield f"before   {ledger.before:,} parameters, {dropped:,} of them dropped"


def read_changes(arguments: Sequence[str]) -> dict[str, object]:
    """SLOT=NAME and SLOT.SETTING=VALUE as a mapping; a value that is not JSON is text."""
    if faults := [argument for argument in arguments if "=" not in argument]:
        raise ConfigError(f"{', '.join(map(repr, faults))}: write SLOT=NAME or SLOT.SETTING=VALUE.")
    changes: dict[str, object] = {}
    for key, _, text in (argument.partition("=") for argument in arguments):
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    return changes
