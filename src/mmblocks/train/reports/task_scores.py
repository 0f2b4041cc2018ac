"""Scores of tasks that are measured while training, as `mmblocks eval` computes them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmblocks.eval.report import write_reports
from mmblocks.eval.runs import run_task
from mmblocks.eval.task_settings import PlannedTask
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.onevision import OneVision
from mmblocks.train.distributed import World


def measure_tasks(
    model: OneVision,
    planned: Sequence[PlannedTask],
    folder: Path,
    world: World,
    about: Mapping[str, object],
    *,
    skips: bool,
) -> dict[str, float]:
    """The numbers of tasks by name ("eval/pope/accuracy"), of each task first the one that ranks models, without those of categories.

    Every process calls it with a whole model, asks its share of the documents and gets the numbers of all. Answers and tables
    are written to `folder`, which is emptied first: another model may have written it. about: what names the model there. Raises
    `DataError` for a document that cannot be read, unless `skips`.
    """
    world.run_on_rank0(partial(shutil.rmtree, folder, ignore_errors=True))
    with use_evaluation_mode(model):
        asked = [
            run_task(model, one.named, folder / one.label, one.select(world.rank, world.size), about, title=one.label)
            for one in planned
        ]
    world.gather_values(None)  # all answers are on disk

    def write_tables() -> dict[str, float]:
        reports = [
            one.make_report(folder / one.label, numbers, skips=skips)
            for one, numbers in zip(planned, asked, strict=True)
        ]
        write_reports(reports, folder)
        return {
            f"eval/{one.label}/{name}": value
            for one, report in zip(planned, reports, strict=True)
            for name, value in one.list_numbers(report).items()
        }

    return world.run_on_rank0(write_tables)
