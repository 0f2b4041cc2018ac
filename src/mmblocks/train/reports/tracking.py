"""Trackers that get the rows of metrics.jsonl too: TensorBoard, Weights & Biases."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmblocks._optional import import_optional
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.settings import format_suggestion
from mmblocks.storage import write_text


class Tracker(Protocol):
    """Takes rows of numbers by step, counted over the whole run."""

    def write_row(self, step: int, row: Mapping[str, float]) -> None:
        """Keep the numbers of a row under their names."""
        ...

    def close(self) -> None:
        """Send what waits, and end."""
        ...


class TensorBoard:
    """Event files in `out`/tensorboard. What an earlier part of the run wrote after step `first` is hidden."""

    def __init__(self, out: Path, first: int, settings: Mapping[str, object]) -> None:
        import_optional("tensorboard", extra="train", to="track=[tensorboard]")
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops events from purge_step on, and rows carry the number of finished steps.
        self._writer = SummaryWriter(out / "tensorboard", purge_step=first + 1)

    def write_row(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # or a killed run would lose its last two minutes

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb, configured by its own environment variables (WANDB_PROJECT, WANDB_MODE=offline, ...).

    A resumed run writes to the same run of wandb, whose id is kept in `out`/wandb_id. Steps that it has are not written
    twice; they would be the same.
    """

    def __init__(self, out: Path, first: int, settings: Mapping[str, object]) -> None:
        wandb: Any = import_optional("wandb", to="track=[wandb]")
        file = out / "wandb_id"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, secrets.token_hex(4))
        self._run = wandb.init(
            id=file.read_text(encoding="utf-8"), resume="allow", name=out.name, dir=str(out), config=dict(settings)
        )

    def write_row(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, int, Mapping[str, object]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def open_trackers(
    names: Sequence[str], out: Path, *, first: int, settings: Mapping[str, object]
) -> tuple[Tracker, ...]:
    """Open the trackers of a run that starts after `first` finished steps of the whole run; `settings` is its recipe.

    Raises `ConfigError` for an unknown name and `MissingDependencyError` for one whose package is not installed.
    """
    if faults := find_tracking_faults(names):
        raise ConfigError.from_faults(faults)
    return tuple(TRACKERS[name](out, first, settings) for name in names)


def find_tracking_faults(names: Sequence[str]) -> list[Fault]:
    """Names of trackers that do not exist."""
    unknown = [name for name in names if name not in TRACKERS]
    return [Fault("track", f"no tracker {n!r}.", format_suggestion(n, TRACKERS).strip()) for n in unknown]
