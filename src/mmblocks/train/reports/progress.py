"""What a run reports while it works: a progress line for people, a line of JSON per report for programs, and trackers."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor
from tqdm import tqdm

from mmblocks.storage import write_text
from mmblocks.train.reports.tracking import Tracker

Number = float | Tensor
"""A figure of a step. A tensor of one number is read when a row is written, so that other steps wait for no device."""


class Progress:
    """Progress of one stage: loss, tokens per second and time left on screen, the same figures in `metrics.jsonl`.

    first: the step to resume at; rows that an interrupted run wrote of that step and later ones are cut from the file.
    writes: False on all processes but the first, which then show and write nothing.
    trackers: they get the same rows, at step `before` + the stage's own step; `before` counts the steps of the stages
        before. They are closed with the progress.
    pending: losses that were not yet in a row when the run stopped (`Progress.pending` of then), so that the next row is
        what it would have been.
    """

    def __init__(
        self,
        stage: str,
        first: int,
        steps: int,
        metrics: Path,
        log_every: int,
        *,
        writes: bool = True,
        trackers: Sequence[Tracker] = (),
        before: int = 0,
        pending: Sequence[float] = (),
    ) -> None:
        self.stage, self.steps, self.log_every = stage, steps, log_every
        self._before = before
        self._trackers = tuple(trackers) if writes else ()
        if writes:
            drop_rows_after(metrics, stage, first)
        self._file = metrics.open("a", encoding="utf-8") if writes else None
        self._bar = tqdm(total=steps, initial=first, desc=stage, unit="step", dynamic_ncols=True, disable=not writes)
        self._losses: deque[Number] = deque(pending, maxlen=log_every)
        self._tokens = self._views = 0
        self._since = time.perf_counter()

    @property
    def recent_losses(self) -> list[float]:
        """The losses that the next row averages, to be kept with a run's state."""
        return [float(loss) for loss in self._losses]

    def is_due(self, step: int) -> bool:
        """Whether the report of this step writes a row: every `log_every` steps, and after the last."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps

    def report_step(
        self,
        step: int,
        loss: Number,
        tokens: int,
        *,
        views: int = 0,
        lr: float | None = None,
        gradient_norm: Number | None = None,
        **others: float,
    ) -> None:
        """Count one finished step (numbered from 0); write a row of metrics where one is due.

        loss, tokens and views are those of the step over all processes; `lr` is its highest learning rate. A row holds
        the mean loss of the last `log_every` steps, speeds by the wall clock since the row before, and `others`.
        """
        self._losses.append(loss)
        self._tokens += tokens
        self._views += views
        self._bar.update()
        if not self.is_due(step):
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        row = {
            "loss": sum(self.recent_losses) / len(self._losses),
            "tokens_per_s": self._tokens / seconds,
            "views_per_s": self._views / seconds,
        }
        self._tokens, self._views, self._since = 0, 0, now
        optional = {"learning_rate": lr, "gradient_norm": gradient_norm}
        row |= {name: float(value) for name, value in optional.items() if value is not None} | others
        texts = {
            "loss": "loss {:.3f}",
            "tokens_per_s": "{:.0f} tokens/s",
            "views_per_s": "{:.0f} views/s",
            "learning_rate": "lr {:.1e}",
            "gradient_norm": "norm {:.2f}",
        }
        hidden = "views_per_s" if not row["views_per_s"] else ""
        self._bar.set_postfix_str(", ".join(t.format(row[n]) for n, t in texts.items() if n in row and n != hidden))
        self.write_row(step + 1, **row)

    def write_row(self, done: int, **row: float) -> None:
        """A row of its own after `done` finished steps, for what is measured beside training."""
        if self._file is None:
            return
        self._file.write(json.dumps({"stage": self.stage, "step": done, **row}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write_row(self._before + done, row)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def drop_rows_after(metrics: Path, stage: str, first: int) -> None:
    """Remove the rows of a metrics file that a run resumed at step `first` of a stage will write again.

    A last line that was cut short when the run was killed is removed too. The file is replaced whole.
    """
    if not metrics.is_file():
        return
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = []
    for line in lines:
        try:
            row = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and (row.get("stage") != stage or row.get("step", 0) <= first):
            kept.append(line)
    if len(kept) < len(lines):
        write_text(metrics, "".join(kept))
