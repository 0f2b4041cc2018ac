"""What the self-test of an op says: how far each of its ways is from the reference on this machine.

A folder of ops has it in a file `selftest.py`: `selftest(device) -> Iterator[Result]`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

import mmblocks.ops


@dataclass(frozen=True, slots=True)
class BackendResult:
    """One way on one case. error: the largest relative to the reference's largest number; None where it cannot run."""

    op: str
    backend: str
    case: str
    error: float | None
    tolerance: float
    reasons: Sequence[str] = ()

    @property
    def is_acceptable(self) -> bool:
        """Whether it is within its tolerance, or says why it cannot run."""
        return bool(self.reasons) if self.error is None else self.error <= self.tolerance


def measure_difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference from float64 numbers, relative to the largest of these; 0 where there are none."""
    if not want.numel():
        return 0.0
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-12))


def run_selftests(device: torch.device | str) -> list[BackendResult]:
    """Every way of every op against its reference on a device, on ragged and odd sizes, value and gradients."""
    return [result for module in _modules() for result in module.run_selftest(device)]


def _modules() -> Iterator[ModuleType]:
    for folder in pkgutil.iter_modules(mmblocks.ops.__path__):
        name = f"mmblocks.ops.{folder.name}.selftest"
        if folder.ispkg and find_spec(name) is not None:
            yield import_module(name)
