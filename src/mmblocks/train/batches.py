"""The batches of a stage by step: a pure function of (seed, stage, step, world), so resuming needs only the step's number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mmblocks.batch import Batch, list_tensors
from mmblocks.data.mixing.overlong import CutRecord, list_cuts
from mmblocks.data.mixing.skipped_records import Policy, SkippedRecord, make_samples
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.encode import Targets
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.train.distributed import World
from mmblocks.train.plan import StageData
from mmblocks.train.stop_signals import leave_signals_to_parent


@dataclass(frozen=True, slots=True)
class StepInput:
    """What a process works on in one step: a packed batch per forward pass, and the records that were left out or cut.

    A batch is None where this process has no samples while others run a forward pass.
    """

    batches: tuple[Batch | None, ...]
    broken: tuple[SkippedRecord, ...] = ()
    cut: tuple[CutRecord, ...] = ()

    def pin_memory(self) -> StepInput:
        """The same with its batches in pinned memory."""
        return replace(self, batches=tuple(None if batch is None else batch.pin_memory() for batch in self.batches))


class StageBatches(Dataset[StepInput]):
    """The batches of one process in a stage, by step; packed for a GPU (see `BatchFeed`)."""

    def __init__(
        self,
        data: StageData,
        processor: Processor,
        targets: Targets,
        world: World,
        *,
        cost: SampleCost | None = None,
        policy: Policy = "raise",
    ) -> None:
        self.data, self.processor = data, processor
        self.policy: Policy = policy
        self.targets: Targets = targets
        self.device, self._rank, self._world, self._cost = world.device, world.rank, world.size, cost

    def __len__(self) -> int:
        return len(self.data.plan)

    def __getitem__(self, step: int) -> StepInput:
        batches: list[Batch | None] = []
        broken: list[SkippedRecord] = []
        cut: list[CutRecord] = []
        mixture = self.data.mixture
        for numbers in self.data.plan.list_rank_packs(step, self._rank, self._world, self._cost):
            samples: list[Sample] = []
            for draw in (self.data.draws[number] for number in numbers):
                new, skipped = make_samples(mixture, [draw], self.processor, self.targets, self.policy)
                samples += new
                broken += skipped
                cut += list_cuts(new, mixture.names[draw.source])
            batch = collate(samples) if samples else None
            batches.append(batch.pack() if batch is not None and self.device.type == "cuda" else batch)
        return StepInput(tuple(batches), tuple(broken), tuple(cut))


def iterate_batches(batches: StageBatches, first: int, workers: int) -> Iterator[StepInput]:
    """Batches from step `first` on, prefetched by worker processes when there are any, in pinned memory for a GPU."""
    settings: dict[str, Any] = {"num_workers": workers, "worker_init_fn": leave_signals_to_parent}
    settings["pin_memory"] = batches.device.type == "cuda"
    return iter(DataLoader(batches, sampler=range(first, len(batches)), batch_size=None, **settings))


class BatchFeed:
    """Moves batches of the host to the device of a run. On the CPU they stay as they are.

    On a GPU the copy is queued on a stream of its own. A step waits for nothing that the device computes, so the host is
    ahead of it, and the copy runs beside the batch before; only what uses the new batch waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    def move(self, batch: Batch) -> Batch:
        """The batch on the device, to be used on the current stream."""
        if self._copying is None:
            return batch
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copying):
            moved = batch.to(self._device)
        computing.wait_stream(self._copying)
        for tensor in list_tensors(moved):
            tensor.record_stream(computing)  # its memory is the copying stream's, which must not reuse it before
        return moved
