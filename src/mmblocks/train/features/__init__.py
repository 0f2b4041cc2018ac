"""Features of a frozen encoder, kept on disk, for stages and sweeps that read the same images again.

A folder per encoder (its settings, its weights, the precision it computes in), and in it a file per visual and plan. What
is read back is what the encoder gave, to the bit; another batch around an image may round its features otherwise, with
a cache or without.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mmblocks.data.mixing.mixture import Draws, Mixture
from mmblocks.data.mixing.skipped_records import Policy
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.train.features.estimating import CacheEstimate, estimate_cache
from mmblocks.train.features.filling import fill_cache
from mmblocks.train.features.store import FeatureCache
from mmblocks.train.stages import Stage, find_feature_cache_conflict

__all__ = ["CacheEstimate", "FeatureCache", "estimate_cache", "fill_cache", "prepare_feature_cache"]

log = logging.getLogger(__name__)


def prepare_feature_cache(
    root: Path | str,
    model: OneVision,
    stage: Stage,
    mixture: Mixture,
    draws: Draws,
    processor: Processor,
    *,
    workers: int = 0,
    broken: Policy = "raise",
) -> FeatureCache:
    """Everything that a stage will show, encoded beforehand; what the cache holds already is not read again.

    Give the result to the stage's processor: dataclasses.replace(processor, features=cache). The model must be whole
    (not sharded) with the weights that the stage starts from. What it costs and saves is logged first, with a warning
    where it does not pay. Raises `ConfigError` where the encoder learns or the disk is too small.
    """
    if reason := find_feature_cache_conflict(stage.train):
        raise ConfigError(f"cache_features, stage {stage.name!r}: {reason}")
    cache = replace(FeatureCache.from_model(root, model, stage.precision), images=processor.images)
    before = estimate_cache(cache, model, stage.precision, mixture, draws, processor)
    if before.disk_bytes > before.free_bytes:
        raise ConfigError(f"cache_features={str(root)!r}: {before}; choose a larger disk, or leave it out.")
    log.log(logging.INFO if before.is_worthwhile else logging.WARNING, "%s", before)
    fill_cache(cache, model, stage.precision, mixture, draws, processor, workers=workers, broken=broken)
    return cache
