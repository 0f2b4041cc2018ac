"""Checks that both sides compute the same, without which nothing is timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmblocks.model.onevision import OneVision
from tests.bench.suites import ours, peer
from tests.bench.suites.cases import Case
from tests.bench.suites.run import BOUND, Unequal, require_equal


@torch.no_grad()
def require_same_logits(what: str, model: OneVision, theirs: nn.Module, case: Case) -> float:
    """The error of the last rows' logits. Raises `Unequal` where it is more than rounding."""
    mine = ours.compute_last_logits(model, case.batch)
    other = peer.compute_last_logits(theirs, case.padded, all_logits=False)
    return require_equal(what, mine, other, _compute_exact(theirs, case))


def _compute_exact(theirs: nn.Module, case: Case) -> Tensor | None:
    """The peer's logits in float32, where it computes in less; its copy is gone when this returns."""
    if next(theirs.parameters()).dtype == torch.float32:
        return None
    wide = peer.copy_to_float32(theirs)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in case.padded.items()}
    return peer.compute_last_logits(wide, inputs, all_logits=False)


def require_same_gradients(what: str, model: OneVision, theirs: nn.Module, case: Case, bound: float = BOUND) -> float:
    """The error of all gradients together after a mean loss. Raises `Unequal` where it is more than rounding.

    Gradients of keys' biases are zero but for rounding, so tensors are not compared one by one.
    """
    model(case.batch).loss.backward()
    peer.compute_padded_loss(theirs, case).backward()
    found, names = dict(theirs.named_parameters()), peer.map_peer_names(model)
    error = _compute_joint_error(
        [(p.grad, found[names[name]].grad) for name, p in model.named_parameters() if names[name] in found]
    )
    _clear_gradients(model, theirs)
    if not error <= bound:
        raise Unequal(f"{what}: gradients differ by {error:.2g} of their norm, at most {bound:.2g} is rounding.")
    return error


def _compute_joint_error(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> float:
    off = size = 0.0
    for mine, other in pairs:
        a, b = (torch.zeros(()) if g is None else g.float() for g in (mine, other))
        off, size = off + float((a - b).square().sum()), size + float(b.square().sum())
    return (off / size) ** 0.5


def _clear_gradients(*models: nn.Module) -> None:
    for model in models:
        model.zero_grad(set_to_none=True)
