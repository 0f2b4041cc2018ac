"""Time the attention backends on this machine and write the orders that `MMBLOCKS_ATTENTION_TABLE` reads.

`mmblocks doctor --tune-attention FILE` runs it.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmblocks.batch import Packing
from mmblocks.errors import ConfigError
from mmblocks.ops.attention import attend
from mmblocks.ops.attention.fixed import KERNELS
from mmblocks.ops.attention.order import FIXED, PACKED
from mmblocks.ops.choice import OPS, use_backends

Step = Callable[[int], None]
"""Computes attention once, on the input set of that number."""
Seconds = Mapping[str, float]
"""By the name of a backend."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sequences of these lengths, with the heads of some model."""

    op: str
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    causal: bool

    def count_flops(self) -> float:
        """Forward; half of the rectangle where it is causal."""
        pairs = sum(length**2 for length in self.lengths) / (2 if self.causal else 1)
        return 4 * pairs * self.heads * self.head_dim

    def make_inputs(
        self, device: torch.device, dtype: torch.dtype, learns: bool, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, heads, head_dim) queries, keys and values."""
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int) -> Tensor:
            x = torch.randn(sum(self.lengths), heads, self.head_dim, generator=generator)
            return x.to(device, dtype).requires_grad_(learns)

        return draw(self.heads), draw(self.kv_heads), draw(self.kv_heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
        """Packed attention, or torch's own on sequences of one length."""
        if self.op == PACKED:
            return attend(q, k, v, packing, causal=self.causal, scale=self.head_dim**-0.5)
        q, k, v = (x.unflatten(0, (len(self.lengths), -1)).transpose(1, 2) for x in (q, k, v))
        grouped = self.heads != self.kv_heads
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=grouped)

    def use_backend(self, name: str) -> AbstractContextManager[object]:
        """Only this backend; the reference of fixed attention is torch's kernel that multiplies scores out."""
        if self.op == PACKED:
            return use_backends(attention=name)
        return sdpa_kernel(next((kernel.backend for kernel in KERNELS if kernel.name == name), SDPBackend.MATH))


def list_shapes(device: torch.device, *, tiny: bool = False) -> tuple[AttentionShape, ...]:
    """A vision tower's and two language models', shorter without a GPU."""
    on_cuda = device.type == "cuda"
    shrink = 1 if on_cuda else 64 if tiny else 8
    pack = tuple(max(1, length // shrink) for length in (7435, 5795, 1588, 1024, 512))
    one, tiles = (max(1, 6337 // shrink),), (729,) * 32 if on_cuda else (64,) * 2
    return (
        AttentionShape(PACKED, "0.5B pack", 14, 2, 64, pack, True),
        AttentionShape(PACKED, "tower pack", 16, 16, 72, tiles, False),
        AttentionShape(PACKED, "7B pack", 28, 4, 128, pack, True),
        AttentionShape(FIXED, "0.5B one", 14, 2, 64, one, True),
        AttentionShape(FIXED, "tower", 16, 16, 72, tiles, False),
        AttentionShape(FIXED, "7B one", 28, 4, 128, one, True),
    )


def make_steps(
    shape: AttentionShape, learns: bool, device: torch.device, dtype: torch.dtype, input_sets: int = 1
) -> dict[str, Step]:
    """A step for each backend that can run a shape, forward or, where `learns`, forward and backward."""
    inputs = [shape.make_inputs(device, dtype, learns, seed) for seed in range(input_sets)]
    packing = Packing.from_lengths(shape.lengths).to(device)

    def make_step(name: str) -> Step:
        def run_step(number: int) -> None:
            with shape.use_backend(name), torch.set_grad_enabled(learns):
                out = shape.attend(*inputs[number], packing)
                if learns:
                    torch.autograd.grad(out.sum(), inputs[number])

        return run_step

    steps = {}
    for backend in OPS[shape.op].backends:
        step = make_step(backend.name)
        try:
            step(0)
        except (ConfigError, RuntimeError, NotImplementedError):  # raised by backends that cannot run the shape
            continue
        steps[backend.name] = step
    return steps


def measure_orders(
    device: torch.device, *, tiny: bool = False, repeats: int = 10
) -> dict[tuple[AttentionShape, bool], Seconds]:
    """Median seconds of every backend for each shape, without and with gradients. Takes a minute or so on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def time_step(step: Step) -> float:
        synchronize()
        start = time.perf_counter()
        step(0)
        synchronize()
        return time.perf_counter() - start

    measured = {}
    for shape in list_shapes(device, tiny=tiny):
        for learns in (False, True):
            steps = make_steps(shape, learns, device, dtype)
            rounds = [{name: time_step(step) for name, step in steps.items()} for _ in range(repeats)]
            measured[shape, learns] = {name: statistics.median(r[name] for r in rounds) for name in steps}
    return measured


def write_orders(
    path: Path | str, measured: Mapping[tuple[AttentionShape, bool], Seconds], device: torch.device
) -> list[dict[str, Any]]:
    """Write a table for `MMBLOCKS_ATTENTION_TABLE`, the fastest backend of each shape first; returns its rows."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    source = f"measured: {name}, torch {torch.__version__}, {date.today().isoformat()}"
    rows = [
        {
            "op": shape.op,
            "order": sorted(seconds, key=lambda backend: seconds[backend]),
            "source": source,
            "head_dim": shape.head_dim,
            "causal": shape.causal,
            "learns": learns,
            "grouped": shape.heads != shape.kv_heads,
        }
        # Smaller heads first: the first row that covers a call is taken.
        for (shape, learns), seconds in sorted(measured.items(), key=lambda item: item[0][0].head_dim)
    ]
    Path(path).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows
