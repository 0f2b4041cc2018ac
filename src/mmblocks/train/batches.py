"""Which conversations make which batch: a pure function of (seed, stage, step), so that resuming needs a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mmblocks.batch import Batch
from mmblocks.conversation import Conversation
from mmblocks.data.collate import collate
from mmblocks.data.encode import Targets
from mmblocks.data.processor import Processor
from mmblocks.data.sources import Source, sources
from mmblocks.errors import ConfigError
from mmblocks.train.stages import Stage


class Mixture:
    """Samples drawn from weighted sources, each source in a new order every time it has been read through."""

    def __init__(self, parts: Sequence[tuple[Source, float]], size: int, seed: Sequence[int]) -> None:
        empty = [i for i, (source, _) in enumerate(parts) if len(source) == 0]
        if empty:
            raise ConfigError(f"data.{empty[0]}: this source holds no conversation.")
        self.sources = [source for source, _ in parts]
        self._seed = tuple(seed)
        shares = np.array([weight for _, weight in parts], dtype=np.float64)
        chosen = np.random.default_rng(self._seed).choice(len(parts), size=size, p=shares / shares.sum())
        self._source = chosen
        self._nth = _running_counts(chosen, len(parts))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Conversation:
        source, nth = int(self._source[index]), int(self._nth[index])
        lap, place = divmod(nth, len(self.sources[source]))
        order = _order(len(self.sources[source]), (*self._seed, source, lap))
        return self.sources[source][int(order[place])]


class StageBatches(Dataset[Batch]):
    """The packed batches of a stage, by step."""

    def __init__(self, mixture: Mixture, processor: Processor, batch_size: int, targets: Targets) -> None:
        self.mixture, self.processor = mixture, processor
        self.batch_size = batch_size
        self.targets: Targets = targets

    def __len__(self) -> int:
        return len(self.mixture) // self.batch_size

    def __getitem__(self, step: int) -> Batch:
        drawn = range(step * self.batch_size, (step + 1) * self.batch_size)
        return collate([self.processor.training_sample(self.mixture[i], self.targets) for i in drawn])


def stage_batches(stage: Stage, number: int, steps: int, processor: Processor, seed: int) -> StageBatches:
    """The batches of the curriculum's stage `number`."""
    parts = [_source(spec) for spec in stage.data]
    mixture = Mixture(parts, steps * stage.batch_size, (seed, number))
    return StageBatches(mixture, processor, stage.batch_size, stage.targets)


def from_step(batches: StageBatches, first: int, workers: int) -> Iterator[Batch]:
    """Batches from a step on, made ahead in worker processes when there are any."""
    steps = range(first, len(batches))
    as_it_is: Any = _as_it_is
    return iter(DataLoader(batches, sampler=steps, batch_size=None, num_workers=workers, collate_fn=as_it_is))


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _source(spec: Any) -> tuple[Source, float]:
    settings = dict(spec)
    weight = settings.pop("weight", 1.0)
    return sources.build(settings), float(weight)


def _running_counts(chosen: np.ndarray, kinds: int) -> np.ndarray:
    """For each draw, how often its source was drawn before."""
    counts = np.empty(len(chosen), dtype=np.int64)
    for kind in range(kinds):
        here = chosen == kind
        counts[here] = np.arange(here.sum())
    return counts


@lru_cache(maxsize=16)
def _order(size: int, seed: tuple[int, ...]) -> np.ndarray:
    """A permutation of `size` conversations."""
    return np.random.default_rng(seed).permutation(size)
