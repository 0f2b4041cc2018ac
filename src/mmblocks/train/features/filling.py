"""Filling a feature cache: what it lacks is decoded, encoded and written, each picture once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmblocks.conversation import Conversation, Visual
from mmblocks.data.mixing.broken import Policy
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture, distinct
from mmblocks.data.record_faults import naming
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import VisualPlan
from mmblocks.train.features.store import FeatureCache, encode, write_file

log = logging.getLogger(__name__)

TOGETHER = 32
"""Views that are encoded in one go."""


def fill(
    cache: FeatureCache,
    model: OneVision,
    precision: str,
    mixture: Mixture,
    draws: Draws,
    processor: Processor,
    *,
    workers: int = 0,
    broken: Policy = "raise",
) -> int:
    """Encode what the cache lacks of these draws; returns how many views. `workers` processes decode ahead.

    broken="skip" logs what cannot be read and leaves it out; reading it later is a `DataError`.
    """
    missing = _Missing(cache, mixture, distinct(draws), replace(processor, images=cache.images), broken)
    whole: Any = _as_it_is
    waiting: list[tuple[Path, Tensor]] = []
    encoded = 0
    for found in DataLoader(missing, batch_size=None, num_workers=workers, collate_fn=whole):
        waiting += found
        if sum(len(pixels) for _, pixels in waiting) >= TOGETHER:
            encoded += _keep(model, precision, waiting)
            waiting = []
    return encoded + _keep(model, precision, waiting)


class _Missing(Dataset[list[tuple[Path, Tensor]]]):
    """For every conversation the pixels of those visuals that the cache lacks, and the files they go to."""

    def __init__(
        self, cache: FeatureCache, mixture: Mixture, draws: Sequence[Draw], processor: Processor, broken: Policy
    ) -> None:
        self.cache, self.mixture, self.draws = cache, mixture, draws
        self.processor, self.broken = processor, broken

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> list[tuple[Path, Tensor]]:
        try:
            conversations = self.processor.conversations(self.mixture[self.draws[number]])
            return [found for one in conversations for found in self._missing_of(one)]
        except DataError as fault:
            if self.broken == "raise":
                raise
            log.warning("left out of the feature cache: %s", fault)
            return []

    def _missing_of(self, conversation: Conversation) -> list[tuple[Path, Tensor]]:
        with naming(conversation.origin):
            return [
                (self.cache.place(visual, plan), self.processor.pixels_of(visual, plan))
                for visual, plan in shown_by(conversation, self.processor)
                if not self.cache.holds(visual, plan)
            ]


def _as_it_is(found: list[tuple[Path, Tensor]]) -> list[tuple[Path, Tensor]]:
    return found


def _keep(model: OneVision, precision: str, waiting: Sequence[tuple[Path, Tensor]]) -> int:
    """Encode pictures and write what comes out, a file for each; returns the views."""
    apart = dict(waiting)  # the same picture may wait twice
    if not apart:
        return 0
    pixels = torch.cat(list(apart.values()))
    features = torch.cat([encode(model, part, precision) for part in pixels.split(TOGETHER)])
    for path, part in zip(apart, features.split([len(own) for own in apart.values()]), strict=True):
        write_file(path, part.clone())
    return len(pixels)


def visuals_of(mixture: Mixture, draw: Draw, processor: Processor) -> Iterator[tuple[Visual, VisualPlan]]:
    """Every visual of a draw with its plan, those of both answers of a pair included."""
    for conversation in processor.conversations(mixture[draw]):
        yield from shown_by(conversation, processor)


def shown_by(conversation: Conversation, processor: Processor) -> Iterator[tuple[Visual, VisualPlan]]:
    """Every visual of a conversation with its plan."""
    for visual, routed in zip(conversation.visuals, processor.plan(conversation), strict=True):
        yield visual, routed.plan
