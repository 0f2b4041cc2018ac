"""Stops training before a loss or a gradient that is not finite reaches the weights or a saved state."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from mmblocks.errors import TrainingError
from mmblocks.train.distributed import World
from mmblocks.train.stages import Stage
from mmblocks.train.state import ResumePoint, list_resume_points

CURE = "A lower learning rate or a longer warm-up usually helps"


class FiniteGuard:
    """Checks every step of a stage, before its update, for a loss or gradients that are not finite.

    at_once: raise before the update of such a step. Otherwise, on a device that should not be waited for at every step, the
    step is noted on the device, and its gradients and those of all later steps become zero, so that weights and moments
    stay finite; `require_finite` raises, and is to be called before anything is reported, measured or written.
    where: the stage, as the error names it. advise: how to resume after a failed step, the error's last words.
    """

    def __init__(
        self, where: str = "training", advise: Callable[[int], str] = lambda step: "", *, at_once: bool = True
    ) -> None:
        self.where = where
        self._advise, self._at_once = advise, at_once
        self._first: Tensor | None = None
        """(3,) number of the first such step, its loss and its norm; the number is -1 where there was none."""

    def check_step(self, step: int, loss: Tensor, norm: Tensor, gradients: Iterable[Tensor]) -> None:
        """Before the update of a step (numbered from 0), with its loss and norm over all processes."""
        bad = ~(loss.isfinite() & norm.isfinite())
        if self._at_once:
            if bad:
                raise self._make_error(step, float(loss), float(norm))
            return
        figures = torch.stack([torch.full_like(norm, step), loss.to(norm), norm]).float()
        if self._first is None:
            self._first = torch.full_like(figures, -1)
        self._first = torch.where((self._first[0] < 0) & bad, figures, self._first)
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
        """Raise `TrainingError` when a step so far was not finite, or one of these tensors is not: weights, moments and
        averages after `done` steps. Every process takes part.
        """
        self.require_finite()
        if not all_finite(tensors, world):
            raise TrainingError(
                f"{self.where}, step {done}: its update made a weight or a moment infinite or NaN; nothing of it is "
                f"saved. {CURE}{self._advise(done - 1)}."
            )

    def _make_error(self, step: int, loss: float, norm: float) -> TrainingError:
        return TrainingError(
            f"{self.where}, step {step + 1}: the loss is {loss} and the gradients' norm {norm}; nothing of it is learned or "
            f"saved. {CURE}{self._advise(step)}."
        )


def all_finite(tensors: Iterable[Tensor], world: World) -> bool:
    """Whether every number of every tensor of every process is finite."""
    checks = [to_local_shard(tensor).isfinite().all().to(world.device) for tensor in tensors]
    (bad,) = world.sum_over_processes(float(~torch.stack(checks).all()) if checks else 0.0)
    return bad == 0


def to_local_shard(tensor: Tensor) -> Tensor:
    """This process' share of a sharded tensor."""
    return getattr(tensor, "to_local", lambda: tensor)()


def to_full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on all processes."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def explain_resume(out: Path, number: int, stage: Stage, step: int) -> str:
    """What a run may change whose step (numbered from 0) of stage `number` failed, and from where it then resumes."""
    key = f"stages.{number}"
    settings = [*(f"{key}.train.{name}" for name in stage.trained_parts), f"{key}.warmup", f"{key}.max_grad_norm"]
    if stage.precision != "float32":
        settings.append(f"{key}.precision (to float32)")
    saved = [point for point in list_resume_points(out) if point.stage == number]
    last = max(saved, default=ResumePoint(number))
    start = f"the state after step {last.step}" if last.step else "the beginning of the stage"
    advice = f": run again with another {', '.join(settings[:-1])} or {settings[-1]}, and it resumes from {start}"
    if 0 < last.step == step:
        advice += "; where that state leads to the same error, "
        folder = out / "state" / last.folder_name
        advice += f"remove {folder} to resume from an older one" if len(saved) > 1 else "begin anew with resume=false"
    return advice
