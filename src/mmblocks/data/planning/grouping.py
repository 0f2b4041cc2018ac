"""Orders that put samples of like length together, as LLaVA's samplers do.

Lengths are words, not tokens; a negative one marks a sample without images or videos. The samplers cut a random order
into chunks of a global batch, sort each by length and deal it to ranks of like total.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from mmblocks.conversation import Conversation, Item, PreferencePair, Text
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture
from mmblocks.data.mixing.skipped_records import Policy
from mmblocks.errors import DataError

MARKER = "<image>"
"""What stands for an image or video when words are counted, as in a LLaVA record."""
IMAGE_WORDS = 128
"""What an image counts for in `length`; a video counts for nothing there."""


def count_words(item: Item) -> int:
    """Words of all turns, markers of visuals included, at least 1; negative for an item that shows nothing.

    A pair has its preferred conversation's.
    """
    conversation = _select_conversation(item)
    texts = (
        "".join(part.text if isinstance(part, Text) else MARKER for part in message.parts)
        for message in conversation.messages
        if message.role != "system"
    )
    count = max(1, sum(len(text.split()) for text in texts))
    return count if conversation.visuals else -count


def estimate_length(item: Item) -> int:
    """Words of all turns, and 128 more where there is an image."""
    has_image = any(visual.kind == "image" for visual in _select_conversation(item).visuals)
    return abs(count_words(item)) + (IMAGE_WORDS if has_image else 0)


def _select_conversation(item: Item) -> Conversation:
    return item.chosen if isinstance(item, PreferencePair) else item


def make_grouped_order(
    mixture: Mixture,
    draws: Draws,
    order: Literal["length", "modality_length"],
    global_batch_size: int,
    seed: Sequence[int],
    policy: Policy = "raise",
) -> np.ndarray:
    """Numbers of draws, (n,) int64, in steps of `global_batch_size` of like length, or of like length and one modality.

    The whole batch counts as one rank's, so the order is the same for every number of processes. policy: with "skip" a
    record that cannot be read, which is left out later, counts as one word.
    """
    of = {"length": estimate_length, "modality_length": count_words}[order]
    known: dict[Draw, int] = {}
    drawn = [draws[number] for number in range(len(draws))]
    for draw in drawn:
        if draw not in known:
            try:
                known[draw] = of(mixture[draw])
            except DataError:
                if policy == "raise":
                    raise
                known[draw] = -1 if order == "modality_length" else 1
    lengths = [known[draw] for draw in drawn]
    seeds = np.random.SeedSequence(tuple(seed)).generate_state(2).tolist()
    inside, across = (torch.Generator().manual_seed(s) for s in seeds)
    if order == "length":
        return np.array(group_by_length(lengths, global_batch_size, 1, across), dtype=np.int64)
    return np.array(group_by_modality(lengths, global_batch_size, 1, inside=inside, across=across), dtype=np.int64)


def group_by_length(
    lengths: Sequence[int] | np.ndarray, global_batch_size: int, world: int, generator: torch.Generator
) -> list[int]:
    """Numbers of samples: a random order in chunks of `world * global_batch_size`, each sorted and dealt to `world` ranks."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = world * global_batch_size
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    longest_first = [sorted(chunk, key=lambda number: lengths[number], reverse=True) for chunk in chunks]
    return [n for chunk in longest_first for share in split_evenly(chunk, lengths, world) for n in share]


def split_evenly(numbers: Sequence[int], lengths: Sequence[int] | np.ndarray, ranks: int) -> list[list[int]]:
    """Numbers in `ranks` shares of one size and like total length; dealt in turn where they cannot be of one size.

    Each number goes to the share of least total that is not full, the first of equals.
    """
    if len(numbers) % ranks:
        return [list(numbers[rank::ranks]) for rank in range(ranks)]
    size = len(numbers) // ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0.0] * ranks
    for number in numbers:
        rank = totals.index(min(totals))
        shares[rank].append(number)
        totals[rank] = totals[rank] + float(lengths[number]) if len(shares[rank]) < size else float("inf")
    return shares


def group_by_modality(
    lengths: Sequence[int] | np.ndarray,
    global_batch_size: int,
    world: int,
    *,
    inside: torch.Generator,
    across: torch.Generator,
) -> list[int]:
    """As `group_by_length`, with chunks that show something (lengths above 0) or nothing (below 0), in a random order.

    What both kinds leave over makes the last chunk, in the order of its numbers. `inside` draws the orders of both kinds,
    `across` the order of chunks; with one kind alone `across` draws all.
    """
    signed = np.asarray(lengths, dtype=np.int64)
    assert (signed != 0).all(), "a sample without words has no modality"
    shown, unshown = np.flatnonzero(signed > 0), np.flatnonzero(signed < 0)
    if not len(shown) or not len(unshown):
        return group_by_length(np.abs(signed).tolist(), global_batch_size, world, across)
    size = world * global_batch_size
    whole: list[list[int]] = []
    rest: list[int] = []
    for kind in (shown, unshown):
        order = kind[group_by_length(np.abs(signed[kind]).tolist(), global_batch_size, world, inside)].tolist()
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        whole += chunks[:-1]
        rest += chunks[-1]
    shuffled = [whole[i] for i in torch.randperm(len(whole), generator=across).tolist()]
    return [number for chunk in shuffled for number in chunk] + sorted(rest)
