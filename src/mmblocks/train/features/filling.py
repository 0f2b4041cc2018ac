"""Filling a feature cache: missing images are decoded, encoded and written, each once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmblocks.conversation import Conversation, Visual
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture, list_distinct_draws
from mmblocks.data.mixing.skipped_records import Policy
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import VisualPlan
from mmblocks.train.features.store import FeatureCache, encode_views, write_features_file

log = logging.getLogger(__name__)

VIEWS_PER_BATCH = 32
"""Views in one forward pass of the encoder."""


def fill_cache(
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
    """Encode the images of these draws that are not in the cache; returns how many views. `workers` processes decode ahead.

    broken="skip" logs what cannot be read and leaves it out; reading it later is a `DataError`.
    """
    missing = _MissingFeatures(
        cache, mixture, list_distinct_draws(draws), replace(processor, images=cache.images), broken
    )
    waiting: list[tuple[Path, Tensor]] = []
    encoded = 0
    for decoded in DataLoader(missing, batch_size=None, num_workers=workers, collate_fn=list):
        waiting += decoded
        if sum(len(pixels) for _, pixels in waiting) >= VIEWS_PER_BATCH:
            encoded += _encode_and_write(model, precision, waiting)
            waiting = []
    return encoded + _encode_and_write(model, precision, waiting)


class _MissingFeatures(Dataset[list[tuple[Path, Tensor]]]):
    """For every conversation the pixels of the visuals that are not in the cache, and the files for their features."""

    def __init__(
        self, cache: FeatureCache, mixture: Mixture, draws: Sequence[Draw], processor: Processor, broken: Policy
    ) -> None:
        self.cache, self.mixture, self.draws = cache, mixture, draws
        self.processor, self.broken = processor, broken

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> list[tuple[Path, Tensor]]:
        missing: list[tuple[Path, Tensor]] = []
        try:
            for conversation in self.processor.list_conversations(self.mixture[self.draws[number]]):
                with name_errors(conversation.origin):
                    for visual, plan in list_conversation_visuals(conversation, self.processor):
                        if not self.cache.has_features(visual, plan):
                            pixels = self.processor.render_visual(visual, plan)
                            missing.append((self.cache.to_path(visual, plan), pixels))
        except DataError as fault:
            if self.broken == "raise":
                raise
            log.warning("left out of the feature cache: %s", fault)
            return []
        return missing


def _encode_and_write(model: OneVision, precision: str, waiting: Sequence[tuple[Path, Tensor]]) -> int:
    """Encode images and write their features, a file for each; returns the number of views."""
    by_path = dict(waiting)  # the same image may wait twice
    if not by_path:
        return 0
    pixels = torch.cat(list(by_path.values()))
    features = torch.cat([encode_views(model, part, precision) for part in pixels.split(VIEWS_PER_BATCH)])
    for path, part in zip(by_path, features.split([len(views) for views in by_path.values()]), strict=True):
        write_features_file(path, part.clone())
    return len(pixels)


def list_visuals(mixture: Mixture, draw: Draw, processor: Processor) -> Iterator[tuple[Visual, VisualPlan]]:
    """Every visual of a draw with its plan; of a pair, those of both answers."""
    for conversation in processor.list_conversations(mixture[draw]):
        yield from list_conversation_visuals(conversation, processor)


def list_conversation_visuals(conversation: Conversation, processor: Processor) -> Iterator[tuple[Visual, VisualPlan]]:
    """Every visual of a conversation with its plan."""
    for visual, routed in zip(conversation.visuals, processor.plan(conversation), strict=True):
        yield visual, routed.plan
