"""Every backend of the gather against the reference in float64, value and gradient."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.choice import Backend
from mmblocks.ops.gather_lerp.library import OP, compute_gather
from mmblocks.ops.gather_lerp.transpose import with_transpose
from mmblocks.ops.selftest import BackendResult, compare_backends, compute_value_and_gradients

TOLERANCES = {
    torch.float32: 1e-6,  # sums of a few rows in another order
    torch.bfloat16: 2**-8,  # the result is rounded to 8 bits
    torch.float16: 2**-10,  # the same to 11 bits, whose smallest numbers are coarser
}
CASES = {  # name: (n, k, size, d)
    "four terms": (60, 4, 140, 896),
    "one term": (60, 1, 80, 64),
    "odd width": (65, 4, 130, 259),
    "many readers of a row": (90, 3, 5, 64),
    "no rows": (0, 4, 9, 64),
}


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each backend, case and dtype, plain and with GELU. Takes a second or two."""
    for name, (n, k, size, d) in CASES.items():
        # Normal numbers and a random table whose weights sum to one, a fifth of them padding.
        generator = torch.Generator().manual_seed(n + k)
        weights = torch.rand(n, k, generator=generator)
        weights[:, 1:] *= torch.rand(n, k - 1, generator=generator) > 0.2
        weights = weights / weights.sum(1, keepdim=True)
        rows = torch.randint(size, (n, k), generator=generator) * (weights > 0)
        wide = torch.randn(size, d, generator=generator)
        table = with_transpose(GatherTable(rows, weights, size)).to(device)
        for dtype, tolerance in TOLERANCES.items():
            for gelu in (False, True):
                x = wide.to(device, dtype)

                def compute(backend: Backend, x: Tensor = x, gelu: bool = gelu) -> list[Tensor]:
                    return compute_value_and_gradients(lambda x: compute_gather(x, table, backend, gelu=gelu), [x])  # noqa: B023

                case, want = f"{name}{' of gelu' * gelu}", compute(OP.reference, x.double())
                yield from compare_backends(OP, case, (x, table), compute, want, dtype, tolerance, gelu=gelu)
