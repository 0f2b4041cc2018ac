"""The batches of a stage by step: a pure function of (seed, stage, step, world), so resuming needs only the step's number."""

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
from mmblocks.train.stop_signals import leave_signals_to_parent


@dataclass(frozen=True, slots=True)
class StepInput:
    """What a process works on in one step: a packed batch per forward pass, and the records that were left out or cut.

    A batch is None where this process has no samples while others run a forward pass.
    """

    batches: tuple[Batch | None, ...]
    broken: tuple[SkippedRecord, ...] = ()
    cut: tuple[CutRecord, ...] = ()


class StageBatches(Dataset[StepInput]):
    """The batches of one process in a stage, by step."""

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
            batches.append(collate(samples) if samples else None)
        return StepInput(tuple(batches), tuple(broken), tuple(cut))


def iterate_batches(batches: StageBatches, first: int, workers: int) -> Iterator[StepInput]:
    """Batches from step `first` on, prefetched by worker processes when there are any."""
    settings: dict[str, Any] = {"num_workers": workers, "worker_init_fn": leave_signals_to_parent}
    return iter(DataLoader(batches, sampler=range(first, len(batches)), batch_size=None, **settings))
