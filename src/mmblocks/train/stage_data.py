"""The data of a stage over all its processes: measured by rank 0, checked before the first step; records left out."""

import logging
from pathlib import Path

from mmblocks.data.inspect.lint import lint_mixture
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.mixing.overlong import format_cuts
from mmblocks.data.mixing.skipped_records import append_skipped, count_records, format_skipped, read_skipped
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.train.distributed import World
from mmblocks.train.plan import StageData, StagePlanner
from mmblocks.train.stages import Stage, TrainRun

log = logging.getLogger(__name__)

BROKEN, CUT = "broken.jsonl", "cut.jsonl"


def make_shared_data(planner: StagePlanner, out: Path, world: World) -> StageData:
    """A stage's data, measured by rank 0; the other processes read the lengths that it has measured.

    Raises `DataError` where a process finds other data than rank 0.
    """
    own: list[StageData] = []

    def plan_on_rank0() -> str:
        with world.stopping.raise_at_once():
            own.append(planner.make_data())
        append_skipped(out / BROKEN, own[0].broken)
        return own[0].digest

    digest = world.run_on_rank0(plan_on_rank0)
    data = own[0] if own else planner.make_same_data()
    if data.digest != digest:
        raise DataError(
            f"stage {planner.stage.name!r}: process {world.rank} finds other data than process 0; do all machines see the "
            "same files?"
        )
    return data


def require_good_labels(
    data: StageData, processor: Processor, stage: Stage, settings: TrainRun, samples_per_source: int
) -> None:
    """Raise `DataError` where records of a source are not labelled as they should be (see `mmblocks.data.inspect.lint`)."""
    report = lint_mixture(data.mixture, processor, stage.targets, samples_per_source=samples_per_source)
    report.require_no_faults(skip_broken=settings.broken == "skip", skip_overlong=stage.overlong == "skip")


def warn_left_out(mixture: Mixture, out: Path) -> None:
    """Warn of the records that were left out or cut, and where they are listed."""
    sizes = count_records(mixture)
    for file, lines in (
        (out / BROKEN, format_skipped(read_skipped(out / BROKEN), sizes)),
        (out / CUT, format_cuts(out / CUT, sizes)),
    ):
        for line in lines:
            log.warning("%s (%s)", line, file)
