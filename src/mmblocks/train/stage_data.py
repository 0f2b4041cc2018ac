"""The data of a stage over all its processes: looked at by the first, checked before the first step, and what was left out."""

from __future__ import annotations

import logging
from pathlib import Path

from mmblocks.data.inspect.lint import lint
from mmblocks.data.mixing.broken import left_out, note_broken, read_broken, sizes_of
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.overlong import cut_lines
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.train.distributed import World
from mmblocks.train.plan import Planner, StageData
from mmblocks.train.stages import Stage, TrainRun

log = logging.getLogger(__name__)

BROKEN, CUT = "broken.jsonl", "cut.jsonl"


def shared_data(planner: Planner, out: Path, world: World) -> StageData:
    """A stage's data, measured by the first process; the others read the lengths that it found.

    Raises `DataError` where a process finds other data than the first.
    """
    made: list[StageData] = []

    def first_of_all() -> str:
        with world.stopping.at_once():
            made.append(planner.data())
        note_broken(out / BROKEN, made[0].broken)
        return made[0].digest

    digest = world.from_first(first_of_all)
    data = made[0] if made else planner.same_data()
    if data.digest != digest:
        raise DataError(
            f"stage {planner.stage.name!r}: process {world.rank} finds other data than process 0; do all machines see the "
            "same files?"
        )
    return data


def require_good_labels(
    data: StageData, processor: Processor, stage: Stage, settings: TrainRun, samples_per_source: int
) -> None:
    """Raise `DataError` where records of a source do not learn what they should (see `mmblocks.data.inspect.lint`)."""
    found = lint(data.mixture, processor, stage.targets, samples_per_source=samples_per_source)
    found.require(skip_broken=settings.broken == "skip", skip_overlong=stage.overlong == "skip")


def tell_left_out(mixture: Mixture, out: Path) -> None:
    """Warn of the records that were left out or cut, and where they are listed."""
    sizes = sizes_of(mixture)
    for file, lines in (
        (out / BROKEN, left_out(read_broken(out / BROKEN), sizes)),
        (out / CUT, cut_lines(out / CUT, sizes)),
    ):
        for line in lines:
            log.warning("%s (%s)", line, file)
