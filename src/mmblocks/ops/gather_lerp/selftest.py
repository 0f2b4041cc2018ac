"""Every way of the gather against the reference in float64, value and gradient, on the device that is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.choice import Backend
from mmblocks.ops.gather_lerp import OP, reference, with_transpose
from mmblocks.ops.selftest import BackendResult, measure_difference

TOLERANCES = {
    torch.float32: 1e-6,  # sums of a few taps in another order
    torch.bfloat16: 2**-8,  # the result is rounded to 8 bits
    torch.float16: 2**-10,  # the same to 11 bits, whose smallest numbers are coarser
}
CASES = {  # name: (n, k, size, d)
    "four taps": (60, 4, 140, 896),
    "one tap": (60, 1, 80, 64),
    "odd width": (65, 4, 130, 259),
    "many readers of a row": (90, 3, 5, 64),
    "no rows": (0, 4, 9, 64),
}


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each way, case and type, plain and with GELU. Takes a second or two."""
    for name, sizes in CASES.items():
        for dtype, tolerance in TOLERANCES.items():
            for gelu in (False, True):
                case = f"{name}{' of gelu' * gelu}, {str(dtype).removeprefix('torch.')}"
                x, taps = _make_inputs(*sizes)
                x, taps = x.to(device, dtype), taps.to(device)
                for backend in OP.backends:
                    reasons = backend.reasons_against(x, taps, gelu=gelu)
                    error = None if reasons else measure_error(backend, x, taps, gelu)
                    yield BackendResult(OP.name, backend.name, case, error, tolerance, reasons)


def measure_error(backend: Backend, x: Tensor, taps: GatherTable, gelu: bool) -> float:
    """The largest difference of value or gradient from those of the reference in float64, relative to the largest."""
    got = _compute_value_and_gradient(backend.run, x, taps, gelu)
    want = _compute_value_and_gradient(reference.run, x.double(), taps, gelu)
    return max(measure_difference(g, w) for g, w in zip(got, want, strict=True))


def _compute_value_and_gradient(
    run: Callable[..., Tensor], x: Tensor, taps: GatherTable, gelu: bool
) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = run(x, taps, gelu=gelu)
        pulled = torch.linspace(-1, 1, value.numel(), device=x.device).view_as(value).to(torch.bfloat16)
        (gradient,) = torch.autograd.grad(value, x, pulled.to(x.dtype))
    return value.detach(), gradient


def _make_inputs(n: int, k: int, size: int, d: int) -> tuple[Tensor, GatherTable]:
    """Normal numbers and random taps whose weights sum to one, a fifth of them padding."""
    drawn = torch.Generator().manual_seed(n + k)
    weights = torch.rand(n, k, generator=drawn)
    weights[:, 1:] *= torch.rand(n, k - 1, generator=drawn) > 0.2
    weights = weights / weights.sum(1, keepdim=True)
    rows = torch.randint(size, (n, k), generator=drawn) * (weights > 0)
    return torch.randn(size, d, generator=drawn), with_transpose(GatherTable(rows, weights, size))
