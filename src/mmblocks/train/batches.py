"""The batches of a stage by step: a pure function of (seed, stage, step, world), so that going on needs a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mmblocks.batch import Batch
from mmblocks.data.mixing.overlong import CutRecord, list_cuts
from mmblocks.data.mixing.skipped_records import Policy, SkippedRecord, make_samples
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.encode import Targets
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.train.distributed import World
from mmblocks.train.plan import StageData
from mmblocks.train.stopping import leave_signals_to_parent


@dataclass(frozen=True, slots=True)
class StepInput:
    """What a process works on in one step: a packed batch per forward pass, and the records that were left out or cut.

    None stands where it has nothing to do while other processes run a forward pass.
    """

    batches: tuple[Batch | None, ...]
    broken: tuple[SkippedRecord, ...] = ()
    cut: tuple[CutRecord, ...] = ()


class StageBatches(Dataset[StepInput]):
    """One process' batches of a stage, by step."""

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
        self._rank, self._world, self._cost = world.rank, world.size, cost

    def __len__(self) -> int:
        return len(self.data.plan)

    def __getitem__(self, step: int) -> StepInput:
        packs = self.data.plan.list_rank_packs(step, self._rank, self._world, self._cost)
        made = [self._pack(numbers) for numbers in packs]
        broken = tuple(record for _, left_out, _ in made for record in left_out)
        return StepInput(
            tuple(batch for batch, _, _ in made), broken, tuple(record for _, _, cut in made for record in cut)
        )

    def _pack(self, numbers: list[int]) -> tuple[Batch | None, list[SkippedRecord], list[CutRecord]]:
        samples: list[Sample] = []
        broken: list[SkippedRecord] = []
        cut: list[CutRecord] = []
        mixture = self.data.mixture
        for draw in (self.data.draws[n] for n in numbers):
            found, left_out = make_samples(mixture, [draw], self.processor, self.targets, self.policy)
            samples, broken = samples + found, broken + left_out
            cut += list_cuts(found, mixture.names[draw.source])
        return (collate(samples) if samples else None), broken, cut


def iterate_batches(batches: StageBatches, first: int, workers: int) -> Iterator[StepInput]:
    """Batches from a step on, made ahead in worker processes when there are any."""
    steps = range(first, len(batches))
    as_it_is: Any = _return_unchanged
    settings: dict[str, Any] = {"num_workers": workers, "worker_init_fn": leave_signals_to_parent}
    return iter(DataLoader(batches, sampler=steps, batch_size=None, collate_fn=as_it_is, **settings))


def _return_unchanged(made: StepInput) -> StepInput:
    return made
