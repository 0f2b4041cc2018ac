"""A loss or a gradient that is not finite is not learned and not saved, and is told with the step in which it came first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmblocks.errors import TrainingError
from mmblocks.train.distributed import World
from mmblocks.train.state import ResumePoint, list_resume_points

CURE = "A lower learning rate or a longer warm-up usually helps"


class FiniteGuard:
    """Watches a stage's steps, before each update, for a loss or gradients that are not finite.

    at_once: raise before the update of such a step. Else, for a device that nobody should wait for at every step, the
    step is noted there and its gradients and those of all later steps become zero, so that weights and moments stay
    finite; `require` raises, and is to be called before what was learned is told, measured or written.
    where: the stage, as the error names it. advice: how to go on after a number of steps, as the error's last words.
    """

    def __init__(
        self, where: str = "training", advice: Callable[[int], str] = lambda step: "", *, at_once: bool = True
    ) -> None:
        self.where = where
        self._advice, self._at_once = advice, at_once
        self._first: Tensor | None = None
        """(3,) number of the first such step, its loss and its norm; the number is -1 where there was none."""

    def check_step(self, step: int, loss: Tensor, norm: Tensor, gradients: Iterable[Tensor]) -> None:
        """Before the update of a step (numbered from 0), with its loss and norm over all processes."""
        bad = ~(loss.isfinite() & norm.isfinite())
        if self._at_once:
            if bad:
                raise self._make_error(step, float(loss), float(norm))
            return
        this = torch.stack([torch.full_like(norm, step), loss.to(norm), norm]).float()
        if self._first is None:
            self._first = torch.full_like(this, -1)
        self._first = torch.where((self._first[0] < 0) & bad, this, self._first)
        failed = self._first[0] >= 0
        for gradient in gradients:
            to_local_shard(gradient).masked_fill_(failed, 0)

    def require_finite(self) -> None:
        """Raise `TrainingError` when a step so far had a loss or gradients that are not finite."""
        if self._first is not None:
            step, loss, norm = self._first.tolist()
            if step >= 0:
                raise self._make_error(int(step), loss, norm)

    def require_finite_weights(self, done: int, tensors: Iterable[Tensor], world: World) -> None:
        """Raise `TrainingError` when a step was not finite, or its update made one of these tensors so: weights, moments and
        averages after `done` steps. Every process takes part.
        """
        self.require_finite()
        if not all_finite(tensors, world):
            raise TrainingError(
                f"{self.where}, step {done}: its update made a weight or a moment infinite or NaN; nothing of it is "
                f"saved. {CURE}{self._advice(done - 1)}."
            )

    def _make_error(self, step: int, loss: float, norm: float) -> TrainingError:
        return TrainingError(
            f"{self.where}, step {step + 1}: the loss is {loss} and the gradients' norm {norm}; nothing of it is learned or "
            f"saved. {CURE}{self._advice(step)}."
        )


def all_finite(tensors: Iterable[Tensor], world: World) -> bool:
    """Whether every number of every tensor of every process is finite."""
    found = [to_local_shard(tensor).isfinite().all().to(world.device) for tensor in tensors]
    (bad,) = world.sum_over_processes(float(~torch.stack(found).all()) if found else 0.0)
    return bad == 0


def to_local_shard(tensor: Tensor) -> Tensor:
    """This process' share of a sharded tensor."""
    return getattr(tensor, "to_local", lambda: tensor)()


def to_full_tensor(tensor: Tensor) -> Tensor:
    """A sharded figure as the number that it is on all processes."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def explain_resume(out: Path, stage: int, step: int, settings: Sequence[str]) -> str:
    """What a run whose step (numbered from 0) failed may change, and from where it then goes on."""
    saved = [place for place in list_resume_points(out) if place.stage == stage]
    last = max(saved, default=ResumePoint(stage))
    start = f"the state after step {last.step}" if last.step else "the beginning of the stage"
    names = " or ".join([", ".join(settings[:-1]), settings[-1]])
    said = f": start the run again with another {names}, and it goes on from {start}"
    if 0 < last.step == step:
        older = f"; where that state leads to it itself, remove {out / 'state' / last.folder_name} to go on from an older one"
        said += older if len(saved) > 1 else "; where that state leads to it itself, begin anew with resume=false"
    return said
