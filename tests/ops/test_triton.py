"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for an H100 or H200.

Triton reads TRITON_INTERPRET when it is imported, so this file is also the program that the interpreter runs.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from mmblocks.batch import GatherTable
from mmblocks.ops.gather_lerp import OP, with_transpose, with_triton
from mmblocks.ops.gather_lerp.library import compute_gather

TOLERANCES = {
    torch.float32: 1e-6,  # sums of a few taps in another order than float64's
    torch.bfloat16: 2**-7,  # the interpreter cuts results off at 8 bits where a device rounds them
    torch.float16: 2**-10,  # rounded to 11 bits
}


def pooled(cells, height, width):
    """Taps that sample an image of cells bilinearly. cells: (rows, columns), the number of each cell in x."""
    (top, bottom, down), (left, right, along) = (
        axis(*sizes) for sizes in zip(cells.shape, (height, width), strict=True)
    )
    rows = [cells[y][:, x] for y in (top, bottom) for x in (left, right)]
    weights = [y[:, None] * x[None, :] for y in (1 - down, down) for x in (1 - along, along)]
    weights = torch.stack(weights, -1).view(-1, 4).float()
    return torch.stack(rows, -1).view(-1, 4) * (weights > 0), weights


def axis(size, new_size):
    centres = ((torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5).clamp(0)
    low = centres.floor().long()
    return low, (low + 1).clamp(max=size - 1), centres - low


def tile_major(rows, columns, side):
    """Cells of rows x columns tiles as an image; each tile's cells lie together."""
    tiles = torch.arange(rows * columns * side**2).view(rows, columns, side, side)
    return tiles.transpose(1, 2).reshape(rows * side, columns * side)


def readers(n, k, size):
    """Few rows that many read, with padding between the taps."""
    weights = torch.rand(n, k) * (torch.rand(n, k) > 0.3)
    return torch.randint(size, (n, k)) * (weights > 0), weights


def tables():
    """name: (rows, weights), how many rows x has, its width."""
    frame, tiles = torch.arange(729).view(27, 27), tile_major(2, 3, 9)
    yield "more channels than a program takes, and an odd number", readers(6, 4, 9), 9, 259
    yield "a frame of 27x27 to 14x14", pooled(frame, 14, 14), 729, 12
    yield "a frame of 27x27 to 7x7", pooled(frame, 7, 7), 729, 12
    yield "2x3 tiles without their padding, shrunk", pooled(tiles[2:-3], 8, 17), 486, 20
    yield "a window of 2x3 tiles, moved", (tiles[:, 4:20].reshape(-1, 1), torch.ones(18 * 16, 1)), 486, 12
    yield "rows that many read", readers(50, 3, 4), 4, 8
    yield "nine taps", readers(8, 9, 30), 30, 16
    yield "no rows", readers(0, 4, 5), 5, 8
    yield "no cells", (torch.zeros(3, 1).long(), torch.zeros(3, 1)), 0, 8


# In the interpreter -------------------------------------------------------------------------------------------------


def report() -> Iterator[tuple[str, float, float]]:
    """What is compared, how far apart it is and how far it may be."""
    torch.manual_seed(0)
    for name, (rows, weights), size, d in tables():
        if d < 32:  # the interpreter takes 20 ms for a program, whatever its size
            with_triton.ROWS, with_triton.CHANNELS = 256, 16
        taps = with_transpose(GatherTable(rows, weights, size))
        for dtype in TOLERANCES:
            for gelu in (False, True):
                x, pulled = torch.randn(size, d).to(dtype), torch.randn(len(rows), d).to(dtype)
                got, want = value_and_gradient("triton", x, taps, pulled, gelu), exact(x, taps, pulled, gelu)
                for what, g, w in zip(("value", "gradient"), got, want, strict=True):
                    assert g.dtype == dtype
                    yield f"{name}: {what}{' of gelu' * gelu}, {dtype}", difference(g, w), TOLERANCES[dtype]
    yield from report_of_strides_and_bits()


def report_of_strides_and_bits() -> Iterator[tuple[str, float, float]]:
    taps = with_transpose(GatherTable(*readers(9, 3, 7), 7))
    x, pulled = torch.randn(7, 48)[:, 8:40], torch.randn(32, 9).t()
    for gelu in (False, True):
        got, want = value_and_gradient("triton", x, taps, pulled, gelu), exact(x, taps, pulled, gelu)
        yield f"rows with gaps{' of gelu' * gelu}", max(map(difference, got, want)), TOLERANCES[torch.float32]
        again = value_and_gradient("triton", x, taps, pulled, gelu)
        yield f"bits of a second run{' of gelu' * gelu}", max(map(difference, again, got)), 0.0


def value_and_gradient(way, x, taps, pulled, gelu):
    x = x.detach().requires_grad_()
    value = compute_gather(x, taps, OP.find_backend(way), gelu=gelu)
    return value.detach(), *torch.autograd.grad(value, x, pulled)


def exact(x, taps, pulled, gelu):
    """By a dense matrix in float64."""
    matrix = torch.zeros(len(taps.rows), taps.size, dtype=torch.float64)
    if taps.size:
        matrix.scatter_add_(1, taps.rows, taps.weights.double())
    x = x.double().detach().requires_grad_()
    value = matrix @ (F.gelu(x) if gelu else x)
    return value.detach(), *torch.autograd.grad(value, x, pulled.double())


def difference(got, want):
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-9)) if want.numel() else 0.0


def test_the_kernels_compute_what_a_matrix_in_float64_does():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 9 * 3 * 2 * 2 + 4
    assert [line for line in found if not line[1] <= line[2]] == []


# Compiled for sm_90 -------------------------------------------------------------------------------------------------

KERNELS = [
    ("gather_rows", {"GELU": False}, "bf16"),
    ("gather_rows", {"GELU": True}, "bf16"),
    ("gather_gradient_through_gelu", {}, "bf16"),
    ("gather_rows", {"GELU": True}, "fp32"),
    ("gather_gradient_through_gelu", {}, "fp32"),
]
INTEGERS = ("n", "d", "stride", "before_stride", "terms")
TABLES = {"rows": "*i64", "weights": "*fp32"}


def compiled(name, dtype, modes):
    """A kernel's machine code for widths that are multiples of 16, without a device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmblocks.ops.gather_lerp import kernels

    kernel = getattr(kernels, name)
    constants = {"ROWS": with_triton.ROWS, "CHANNELS": with_triton.CHANNELS, "EXACT": dtype == "fp32", **modes}
    names = kernel.arg_names
    types = {n: "i32" if n in INTEGERS else TABLES.get(n, f"*{dtype}") for n in names}
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    aligned = {n for n in names if n not in constants} - {"n", "terms"}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=with_triton.OPTIONS).asm["cubin"]


def disassembled(cubin, folder):
    """Its instructions, and what it uses of registers and memory."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    return [subprocess.check_output([tool, option, file], text=True) for option in ("-sass", "-res-usage")]


@pytest.mark.parametrize(("name", "modes", "dtype"), KERNELS)
def test_compiled_for_sm_90_they_move_16_bytes_a_thread_and_spill_nothing(name, modes, dtype, tmp_path):
    instructions, usage = disassembled(compiled(name, dtype, modes), tmp_path)
    assert set(re.findall(r"STG\.\S+", instructions)) == {"STG.E.128"}
    # Beside channels only the table is read: a row number has 64 bits, a weight 32.
    assert set(re.findall(r"LDG\.\S+", instructions)) == {"LDG.E.128", "LDG.E.64", "LDG.E"}
    assert re.findall(r"\b(?:LDL|STL|ATOM|RED|LDS|STS)\b\S*", instructions) == []
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    assert registers <= 128  # four programs of 128 threads on a multiprocessor at least
    assert stack == 0


if __name__ == "__main__":
    print(json.dumps(list(report())))
