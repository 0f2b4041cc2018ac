"""Whether a feature cache is worthwhile: its costs and savings, measured on a few conversations."""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mmblocks.conversation import Visual
from mmblocks.data.media.files import describe_source
from mmblocks.data.mixing.mixture import Draws, Mixture, list_distinct_draws
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
    """The costs and savings of a cache, from a few conversations.

    views: views that the stage shows, repetitions included. missing: views yet to be encoded. encode_s, write_s, read_s:
    seconds per view, decoding counted with encoding. disk_bytes: bytes still to be written.
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
        """How often each image must be read until the cache saves time; infinite where reading is slower than encoding."""
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
    """Whether a cache is worthwhile, measured on a few conversations spread over the draws; broken ones are skipped."""
    distinct = list_distinct_draws(draws)
    sampled = [distinct[i] for i in np.unique(np.linspace(0, len(distinct) - 1, 4 * MAX_CONVERSATIONS).astype(int))]
    by_conversation: list[list[tuple[Visual, VisualPlan]]] = []
    for draw in sampled:
        with suppress(DataError), name_errors(mixture.describe_origin(draw)):
            by_conversation.append(list(list_visuals(mixture, draw, processor)))
    visuals = [visual for conversation in by_conversation for visual in conversation]
    count = max(len(by_conversation), 1)
    views = sum(len(plan.unique_views) for _, plan in visuals) / count
    missing = sum(len(plan.unique_views) for visual, plan in visuals if not _is_cached(cache, visual, plan)) / count
    missing *= len(distinct)
    measured = [visual for conversation in by_conversation[:MAX_CONVERSATIONS] for visual in conversation]
    encode_s, write_s, read_s = _measure_costs(cache, model, precision, measured, processor)
    disk_bytes = missing * int(np.prod(cache.grid)) * cache.dtype.itemsize
    existing = next(folder for folder in (cache.folder, *cache.folder.absolute().parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    return CacheEstimate(views * len(draws), missing, encode_s, write_s, read_s, disk_bytes, free_bytes)


def _is_cached(cache: FeatureCache, visual: Visual, plan: VisualPlan) -> bool:
    try:
        with name_errors(describe_source(visual.source, visual.kind)):
            return cache.has_features(visual, plan)
    except DataError:  # it cannot be read when the cache is filled, either
        return True


def _measure_costs(
    cache: FeatureCache,
    model: OneVision,
    precision: str,
    visuals: Sequence[tuple[Visual, VisualPlan]],
    processor: Processor,
) -> tuple[float, float, float]:
    """Seconds per view to decode and encode, to write, to read back; zeros without visuals."""
    seconds, views = np.zeros(3), 0
    trial = cache.folder / f".trial-{os.getpid()}.safetensors"
    for visual, plan in visuals:
        try:
            with name_errors(describe_source(visual.source, visual.kind)):
                begin = time.perf_counter()
                features = encode_views(model, processor.render_visual(visual, plan), precision)
                encoded = time.perf_counter()
                write_features_file(trial, features)
                written = time.perf_counter()
                cache.to_path(visual, plan)  # a data worker also has to find the file
                read_features_file(trial, "trial")
                seconds += encoded - begin, written - encoded, time.perf_counter() - written
                views += len(plan.unique_views)
        except DataError as fault:
            log.debug("skipped in the estimate: %s", fault)
    trial.unlink(missing_ok=True)
    encode_s, write_s, read_s = seconds / max(views, 1)
    return float(encode_s), float(write_s), float(read_s)
