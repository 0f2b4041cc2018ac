"""Every backend of the rotary embedding against torch's gradients of the reference in float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmblocks.ops.choice import Backend
from mmblocks.ops.rotary import OP, compute_rotary
from mmblocks.ops.selftest import BackendResult, compare_backends, compute_value_and_gradients

TOLERANCES = {
    torch.float32: 1e-6,  # two products are added with one rounding or with two
    torch.bfloat16: 2**-6,  # products and their sum are rounded to 8 bits
    torch.float16: 2**-9,  # the same to 11 bits
}
CASES = {  # name: (sequences, tokens, heads, kv_heads, head_dim)
    "grouped heads": (1, 37, 14, 2, 64),
    "two sequences": (2, 9, 4, 4, 128),
    "a width that is no power of 2": (1, 5, 3, 1, 96),
    "no tokens": (1, 0, 2, 2, 64),
}


def run_selftest(device: torch.device | str) -> Iterator[BackendResult]:
    """A result for each backend, case and dtype, with angles of the same type and in float32."""
    for name, (sequences, tokens, heads, kv_heads, head_dim) in CASES.items():
        generator = torch.Generator().manual_seed(tokens)
        q, k = (torch.randn(sequences, tokens, n, head_dim, generator=generator) for n in (heads, kv_heads))
        angles = torch.rand(1, tokens, head_dim, generator=generator) * 6
        for dtype, tolerance in TOLERANCES.items():
            for table_dtype in dict.fromkeys((dtype, torch.float32)):
                inputs = [x.to(device, dtype).transpose(1, 2) for x in (q, k)]
                tables = [table.to(device, table_dtype) for table in (angles.cos(), angles.sin())]

                def rotate(
                    q: Tensor, k: Tensor, backend: Backend, tables: list[Tensor] = tables, dtype: torch.dtype = dtype
                ) -> Tensor:
                    cos, sin = tables
                    return torch.cat(compute_rotary(q, k, cos, sin, dtype, backend.name), dim=1)

                def compute(backend: Backend, inputs: list[Tensor] = inputs) -> list[Tensor]:
                    return compute_value_and_gradients(lambda q, k: rotate(q, k, backend), inputs)  # noqa: B023

                wide = [table.double() for table in tables]
                want = compute_value_and_gradients(
                    lambda q, k: torch.cat(OP.reference.run(q, k, *wide, torch.float64), dim=1),  # noqa: B023
                    [x.double() for x in inputs],
                )
                case = f"{name}, angles in {'the same type' if table_dtype == dtype else 'float32'}"
                yield from compare_backends(OP, case, (*inputs, *tables, dtype), compute, want, dtype, tolerance)
