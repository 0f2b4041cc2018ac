"""Features of a frozen encoder, kept on disk, for stages and sweeps that read the same images again.

There is a folder per encoder (its settings, its weights, the precision it computes in) with a file per visual and plan. What
is read is what the encoder computed, to the bit; in another batch, with or without a cache, an image's features may round
differently.
"""

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
    """Encode all images of a stage beforehand, except those already in the cache.

    Give the result to the stage's processor: dataclasses.replace(processor, features=cache). The model must be whole
    (not sharded) with the weights that the stage starts from. Costs and savings are logged first, as a warning where the
    cache is not worthwhile. Raises `ConfigError` where the encoder is trained or the disk is too small.
    """
    if reason := find_feature_cache_conflict(stage.train):
        raise ConfigError(f"cache_features, stage {stage.name!r}: {reason}")
    cache = replace(FeatureCache.from_model(root, model, stage.precision), images=processor.images)
    estimate = estimate_cache(cache, model, stage.precision, mixture, draws, processor)
    if estimate.disk_bytes > estimate.free_bytes:
        raise ConfigError(f"cache_features={str(root)!r}: {estimate}; choose a larger disk, or leave it out.")
    log.log(logging.INFO if estimate.is_worthwhile else logging.WARNING, "%s", estimate)
    fill_cache(cache, model, stage.precision, mixture, draws, processor, workers=workers, broken=broken)
    return cache
