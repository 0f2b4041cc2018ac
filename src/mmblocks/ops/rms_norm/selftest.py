"""Every backend of the norm against torch's gradients of the reference in float64."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mmblocks.ops.choice import Backend
from mmblocks.ops.rms_norm import OP, STYLES, Style, compute_norm
from mmblocks.ops.selftest import BackendResult, compare_backends, compute_value_and_gradients

TOLERANCES = {
    torch.float32: 2e-6,  # sums over rows and columns in another order
    torch.bfloat16: 2**-6,  # a row is rounded to 8 bits, and so is its product with the weight
    torch.float16: 2**-9,  # the same to 11 bits
}
CASES = {  # name: (shape, scale of x)
    "hidden states": ((37, 896), 1.0),
    "heads": ((9, 5, 128), 1.0),
    "odd width": ((1, 21, 259), 1.0),
    "large values": ((5, 64), 1e4),
    "values near the epsilon": ((5, 64), 1e-3),
    "no rows": ((0, 64), 1.0),
}
EPSILON = 1e-6


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each backend, case, style and dtype. Takes a second or two."""
    for name, (shape, scale) in CASES.items():
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.randn(shape, generator=generator) * scale
        weight = torch.randn(shape[-1], generator=generator)
        for dtype, tolerance in TOLERANCES.items():
            inputs = x.to(device, dtype), weight.to(device, dtype)
            for style in STYLES:

                def compute(
                    backend: Backend, inputs: tuple[Tensor, Tensor] = inputs, style: Style = style
                ) -> list[Tensor]:
                    run = partial(compute_norm, eps=EPSILON, style=style, backend=backend.name)
                    return compute_value_and_gradients(run, inputs)

                want = compute_value_and_gradients(
                    lambda x, weight: OP.reference.run(x, weight, EPSILON, style)[0],  # noqa: B023
                    [t.double() for t in inputs],
                )
                case = f"{name}, {style}"
                yield from compare_backends(OP, case, (*inputs, EPSILON, style), compute, want, dtype, tolerance)
