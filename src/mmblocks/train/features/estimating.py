"""Whether a feature cache pays: what it costs and saves, measured on a few conversations."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmblocks.conversation import Visual
from mmblocks.data.media.files import describe_source
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture, list_distinct_draws
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import VisualPlan
from mmblocks.train.features.filling import list_visuals
from mmblocks.train.features.store import FeatureCache, encode_views, read_features_file, write_features_file

log = logging.getLogger(__name__)

MAX_CONVERSATIONS = 8
"""Conversations with visuals that are encoded for an estimate."""


@dataclass(frozen=True, slots=True)
class CacheEstimate:
    """What a cache would cost and save, from a few conversations.

    views: views that the stage shows, repeats counted. missing: views yet to be encoded. encode_s, write_s, read_s:
    seconds per view, decoding counted with encoding. disk_bytes: what has to be written.
    """

    views: float
    missing: float
    encode_s: float
    write_s: float
    read_s: float
    disk_bytes: float
    free_bytes: float

    @property
    def savings_s(self) -> float:
        """Seconds that this stage saves; negative where it takes longer."""
        return self.views * (self.encode_s - self.read_s) - self.missing * (self.encode_s + self.write_s)

    @property
    def is_worthwhile(self) -> bool:
        return self.savings_s > 0

    @property
    def break_even(self) -> float:
        """How often each image must be read until the cache has paid; infinite where reading is slower than encoding."""
        gained = self.encode_s - self.read_s
        return (self.encode_s + self.write_s) / gained if gained > 0 else float("inf")

    def __str__(self) -> str:
        often = f"{self.views / self.missing:.1f} times each" if self.missing else "all in the cache"
        verdict = (
            f"saves about {self.savings_s:.0f} s here"
            if self.is_worthwhile
            else f"not worth it for this stage alone ({-self.savings_s:.0f} s longer); it pays when images are read "
            f"{self.break_even:.1f} times or more, other runs with this folder counted"
        )
        return (
            f"feature cache: {self.views:.0f} views are read, {often}; decoding and encoding takes "
            f"{1000 * self.encode_s:.1f} ms a view, reading {1000 * self.read_s:.1f} ms; "
            f"{self.disk_bytes / 1e9:.2f} GB to write, {self.free_bytes / 1e9:.0f} GB free: {verdict}"
        )


def estimate_cache(
    cache: FeatureCache, model: OneVision, precision: str, mixture: Mixture, draws: Draws, processor: Processor
) -> CacheEstimate:
    """Whether a cache pays, measured on a few conversations spread over the draws. Broken ones are passed over."""
    different = list_distinct_draws(draws)
    tried = [different[i] for i in np.unique(np.linspace(0, len(different) - 1, 4 * MAX_CONVERSATIONS).astype(int))]
    shown = [found for draw in tried if (found := _try_list_visuals(mixture, draw, processor)) is not None]
    visuals = [visual for found in shown for visual in found]
    views = sum(len(plan.unique_views) for _, plan in visuals) / max(len(shown), 1)
    lacking = sum(len(plan.unique_views) for visual, plan in visuals if not _is_cached(cache, visual, plan)) / max(
        len(shown), 1
    )
    encode_s, write_s, read_s = _measure_costs(
        cache, model, precision, [v for found in shown[:MAX_CONVERSATIONS] for v in found], processor
    )
    missing = lacking * len(different)
    size = int(np.prod(cache.grid)) * cache.dtype.itemsize
    return CacheEstimate(
        views * len(draws),
        missing,
        encode_s,
        write_s,
        read_s,
        missing * size,
        shutil.disk_usage(_there(cache.folder)).free,
    )


def _try_list_visuals(mixture: Mixture, draw: Draw, processor: Processor) -> list[tuple[Visual, VisualPlan]] | None:
    try:
        with name_errors(mixture.describe_origin(draw)):
            return list(list_visuals(mixture, draw, processor))
    except DataError:
        return None


def _is_cached(cache: FeatureCache, visual: Visual, plan: VisualPlan) -> bool:
    try:
        with name_errors(describe_source(visual.source, visual.kind)):
            return cache.has_features(visual, plan)
    except DataError:  # nor will it be read when the cache is filled
        return True


def _measure_costs(
    cache: FeatureCache,
    model: OneVision,
    precision: str,
    visuals: Sequence[tuple[Visual, VisualPlan]],
    processor: Processor,
) -> tuple[float, float, float]:
    """Seconds per view to decode and encode, to write, to read back; zeros where there is nothing to look at."""
    spent, views = np.zeros(3), 0
    trial = cache.folder / f".trial-{os.getpid()}.safetensors"
    for visual, plan in visuals:
        try:
            with name_errors(describe_source(visual.source, visual.kind)):
                begin = time.perf_counter()
                features = encode_views(model, processor.render_visual(visual, plan), precision)
                encoded = time.perf_counter()
                write_features_file(trial, features)
                written = time.perf_counter()
                cache.to_path(visual, plan)  # a data worker has to find the file, too
                read_features_file(trial, "trial")
                spent += encoded - begin, written - encoded, time.perf_counter() - written
                views += len(plan.unique_views)
        except DataError as fault:
            log.debug("passed over in the estimate: %s", fault)
    trial.unlink(missing_ok=True)
    encode_s, write_s, read_s = spent / max(views, 1)
    return float(encode_s), float(write_s), float(read_s)


def _there(folder: Path) -> Path:
    """The nearest folder that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
