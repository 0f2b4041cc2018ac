"""The self-test of the ops: how far each backend is from the reference on this machine, in value and gradients.

Each op's folder has a `selftest.py` with `run_selftest(device) -> Iterator[BackendResult]`.
"""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

import mmblocks.ops
from mmblocks.ops.choice import Backend, Op
from mmblocks.reprs import format_dtype


@dataclass(frozen=True, slots=True)
class BackendResult:
    """One backend on one case. error: relative to the reference's largest number; None where it cannot run."""

    op: str
    backend: str
    case: str
    error: float | None
    tolerance: float
    reasons: Sequence[str] = ()

    @property
    def is_acceptable(self) -> bool:
        """Whether the error is within the tolerance, or there are reasons why the backend cannot run."""
        return bool(self.reasons) if self.error is None else self.error <= self.tolerance


def run_selftests(device: torch.device | str) -> list[BackendResult]:
    """Every backend of every op against its reference on a device, on ragged and odd sizes."""
    folders = [f"mmblocks.ops.{m.name}.selftest" for m in pkgutil.iter_modules(mmblocks.ops.__path__) if m.ispkg]
    modules = [import_module(name) for name in folders if find_spec(name) is not None]
    return [result for module in modules for result in module.run_selftest(device)]


def compare_backends(
    op: Op,
    case: str,
    inputs: Sequence[object],
    compute: Callable[[Backend], Sequence[Tensor]],
    want: Sequence[Tensor],
    dtype: torch.dtype,
    tolerance: float,
    **settings: object,
) -> Iterator[BackendResult]:
    """A result for each backend of an op that may be given `inputs`: the tensors that it computes against `want`.

    `tolerance` is for backends that name none of their own for `dtype`.
    """
    for backend in op.backends:
        reasons = backend.reasons_against(*inputs, **settings)
        error = None
        if not reasons:
            error = max(measure_difference(g, w) for g, w in zip(compute(backend), want, strict=True))
        allowed = backend.tolerances.get(dtype, tolerance)
        yield BackendResult(op.name, backend.name, f"{case}, {format_dtype(dtype)}", error, allowed, reasons)


def measure_difference(got: Tensor, want: Tensor) -> float:
    """The largest difference from float64 numbers, relative to the largest of these; 0 where there are none."""
    if not want.numel():
        return 0.0
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-12))


def compute_value_and_gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value of a function, and the gradients of all inputs for an uneven gradient of the value."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        value = run(*leaves)
        pulled = torch.linspace(-1, 1, value.numel(), device=value.device).view(value.shape).to(torch.bfloat16)
        gradients = torch.autograd.grad(value, leaves, pulled.to(value.dtype))
    return [value.detach(), *gradients]
