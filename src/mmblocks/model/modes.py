"""Training and evaluation mode: dropout, stochastic depth and batch statistics belong to what learns."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def keep_frozen_in_evaluation(module: nn.Module) -> None:
    """Put every module inside that has weights of which none learns in evaluation mode, with all that it holds.

    A module without weights, such as a dropout layer, goes with the one that it is in. A backbone with adapters learns by
    them: around its adapted layers it stays in training mode, as in PEFT.
    """
    for child in module.children():
        if _is_frozen(child):
            child.eval()
        else:
            keep_frozen_in_evaluation(child)


def _is_frozen(module: nn.Module) -> bool:
    learns = [parameter.requires_grad for parameter in module.parameters()]
    return bool(learns) and not any(learns)


@contextmanager
def use_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode; afterwards every module in it has the mode that it had."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training
