"""Every backend of the gate against torch's gradients of the reference in float64."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mmblocks.ops.choice import Backend
from mmblocks.ops.gated_product import ACTIVATIONS, OP, Activation, compute_product
from mmblocks.ops.selftest import BackendResult, compare_backends, compute_value_and_gradients

TOLERANCES = {
    torch.float32: 2e-6,  # exponentials by another series
    torch.bfloat16: 2**-6,  # the activation is rounded to 8 bits, and so is its product
    torch.float16: 2**-9,  # the same to 11 bits
}
CASES = {  # name: (shape, scale)
    "hidden states": ((37, 1040), 1.0),
    "odd width": ((3, 7, 259), 3.0),
    "large values": ((5, 64), 100.0),
    "no rows": ((0, 64), 1.0),
}


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each backend, case, activation and dtype. Takes a second or two."""
    for name, (shape, scale) in CASES.items():
        generator = torch.Generator().manual_seed(sum(shape))
        both = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator) * scale
        for dtype, tolerance in TOLERANCES.items():
            inputs = both.to(device, dtype).chunk(2, dim=-1)  # rows with gaps
            for activation in ACTIVATIONS:

                def compute(
                    backend: Backend, inputs: tuple[Tensor, ...] = inputs, activation: Activation = activation
                ) -> list[Tensor]:
                    run = partial(compute_product, activation=activation, backend=backend.name)
                    return compute_value_and_gradients(run, inputs)

                want = compute_value_and_gradients(
                    lambda gate, up: OP.reference.run(gate, up, activation),  # noqa: B023
                    [x.double() for x in inputs],
                )
                case = f"{name}, {activation}"
                yield from compare_backends(OP, case, (*inputs, activation), compute, want, dtype, tolerance)
