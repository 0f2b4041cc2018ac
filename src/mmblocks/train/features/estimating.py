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
from mmblocks.data.media.files import name_of
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture, distinct
from mmblocks.data.record_faults import naming
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import VisualPlan
from mmblocks.train.features.filling import visuals_of
from mmblocks.train.features.store import FeatureCache, encode, read_file, write_file

log = logging.getLogger(__name__)

TRIED = 8
"""Conversations with visuals that are encoded for an estimate."""


@dataclass(frozen=True, slots=True)
class Estimate:
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
    def saved_s(self) -> float:
        """Seconds that this stage saves; negative where it takes longer."""
        return self.views * (self.encode_s - self.read_s) - self.missing * (self.encode_s + self.write_s)

    @property
    def pays(self) -> bool:
        return self.saved_s > 0

    @property
    def break_even(self) -> float:
        """How often each picture must be read until the cache has paid; infinite where reading is slower than encoding."""
        gained = self.encode_s - self.read_s
        return (self.encode_s + self.write_s) / gained if gained > 0 else float("inf")

    def __str__(self) -> str:
        often = f"{self.views / self.missing:.1f} times each" if self.missing else "all in the cache"
        verdict = (
            f"saves about {self.saved_s:.0f} s here"
            if self.pays
            else f"not worth it for this stage alone ({-self.saved_s:.0f} s longer); it pays when pictures are read "
            f"{self.break_even:.1f} times or more, other runs with this folder counted"
        )
        return (
            f"feature cache: {self.views:.0f} views are read, {often}; decoding and encoding takes "
            f"{1000 * self.encode_s:.1f} ms a view, reading {1000 * self.read_s:.1f} ms; "
            f"{self.disk_bytes / 1e9:.2f} GB to write, {self.free_bytes / 1e9:.0f} GB free: {verdict}"
        )


def estimate(
    cache: FeatureCache, model: OneVision, precision: str, mixture: Mixture, draws: Draws, processor: Processor
) -> Estimate:
    """Whether a cache pays, measured on a few conversations spread over the draws. Broken ones are passed over."""
    different = distinct(draws)
    tried = [different[i] for i in np.unique(np.linspace(0, len(different) - 1, 4 * TRIED).astype(int))]
    shown = [found for draw in tried if (found := _readable(mixture, draw, processor)) is not None]
    visuals = [visual for found in shown for visual in found]
    views = sum(len(plan.pictures) for _, plan in visuals) / max(len(shown), 1)
    lacking = sum(len(plan.pictures) for visual, plan in visuals if not _is_held(cache, visual, plan)) / max(
        len(shown), 1
    )
    encode_s, write_s, read_s = _measured(
        cache, model, precision, [v for found in shown[:TRIED] for v in found], processor
    )
    missing = lacking * len(different)
    size = int(np.prod(cache.grid)) * cache.dtype.itemsize
    return Estimate(
        views * len(draws),
        missing,
        encode_s,
        write_s,
        read_s,
        missing * size,
        shutil.disk_usage(_there(cache.folder)).free,
    )


def _readable(mixture: Mixture, draw: Draw, processor: Processor) -> list[tuple[Visual, VisualPlan]] | None:
    try:
        with naming(mixture.origin(draw)):
            return list(visuals_of(mixture, draw, processor))
    except DataError:
        return None


def _is_held(cache: FeatureCache, visual: Visual, plan: VisualPlan) -> bool:
    try:
        with naming(name_of(visual.source, visual.kind)):
            return cache.holds(visual, plan)
    except DataError:  # nor will it be read when the cache is filled
        return True


def _measured(
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
            with naming(name_of(visual.source, visual.kind)):
                begin = time.perf_counter()
                features = encode(model, processor.pixels_of(visual, plan), precision)
                encoded = time.perf_counter()
                write_file(trial, features)
                written = time.perf_counter()
                cache.place(visual, plan)  # a data worker has to find the file, too
                read_file(trial, "trial")
                spent += encoded - begin, written - encoded, time.perf_counter() - written
                views += len(plan.pictures)
        except DataError as fault:
            log.debug("passed over in the estimate: %s", fault)
    trial.unlink(missing_ok=True)
    encode_s, write_s, read_s = spent / max(views, 1)
    return float(encode_s), float(write_s), float(read_s)


def _there(folder: Path) -> Path:
    """The nearest folder that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
