"""Every way to compute attention on this machine, and the order that it says: packed and fixed shapes, learned or not.

`list_order(rows)` writes what `MMBLOCKS_ATTENTION_TABLE` reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmblocks.batch import Packing
from mmblocks.errors import ConfigError
from mmblocks.ops.attention import attend
from mmblocks.ops.choice import REFERENCE, use_backends
from tests.bench.suites.floors import compute_floor_s
from tests.bench.suites.rows import Row, describe_machine, describe_versions, format_today
from tests.bench.suites.run import Run
from tests.bench.suites.timing import time_in_turns

NAME = "attention"
PACKED, FIXED = "attention", "fixed_attention"
WAYS = {PACKED: ("xformers", "varlen", REFERENCE), FIXED: ("cudnn", "flash", "efficient", REFERENCE)}
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    REFERENCE: SDPBackend.MATH,
}
CANNOT = (ConfigError, RuntimeError, NotImplementedError)
"""What ways raise that do not serve a shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sequences of these lengths, with heads as a model has them."""

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

    def scenario(self) -> str:
        seen = "causal" if self.causal else "full"
        return f"{self.name}: d{self.head_dim}, {self.heads}/{self.kv_heads} heads, {seen}, {self._describe_lengths()}"

    def _describe_lengths(self) -> str:
        alike = len(set(self.lengths)) == 1
        return f"{len(self.lengths)}x{self.lengths[0]}" if alike else "+".join(map(str, self.lengths))


def list_shapes(run: Run) -> tuple[Shape, ...]:
    """The vision tower's and both language models', shorter without a GPU."""
    down = 1 if run.on_gpu else 64 if run.tiny else 8
    pack = tuple(max(1, length // down) for length in (7435, 5795, 1588, 1024, 512))
    one, tiles = (max(1, 6337 // down),), (729 if run.on_gpu else 64,) * (32 if run.on_gpu else 2)
    return (
        Shape(PACKED, "0.5B pack", 14, 2, 64, pack, True),
        Shape(PACKED, "tower pack", 16, 16, 72, tiles, False),
        Shape(PACKED, "7B pack", 28, 4, 128, pack, True),
        Shape(FIXED, "0.5B one", 14, 2, 64, one, True),
        Shape(FIXED, "tower", 16, 16, 72, tiles, False),
        Shape(FIXED, "7B one", 28, 4, 128, one, True),
    )


def measure(run: Run) -> Iterator[Row]:
    """A row for each way that serves a shape; the others of the shape are compared with its reference."""
    for shape in list_shapes(run):
        for learns in (False, True):
            run.require_time(10, shape.name)
            yield from _measure_shape(run, shape, learns)


def _measure_shape(run: Run, shape: Shape, learns: bool) -> Iterator[Row]:
    sets = [_make_inputs(run, shape, learns, seed) for seed in range(run.input_sets)]
    packing = Packing.from_lengths(shape.lengths).to(run.device)
    doing = {way: _make_timed_call(shape, way, sets, packing, learns) for way in WAYS[shape.op]}
    served = {way: do for way, do in doing.items() if _is_served(do)}
    timings = time_in_turns(served, run)
    floor = compute_floor_s(shape.count_flops() * (3.5 if learns else 1), run)
    for way, timing in timings.items():
        yield run.row(
            NAME,
            shape.scenario(),
            "forward and backward" if learns else "forward",
            "s",
            timing.median,
            timings[REFERENCE].median if way != REFERENCE and REFERENCE in timings else None,
            setting="naive" if way != REFERENCE and REFERENCE in timings else "",
            settings=f"{shape.op}={way}",
            spread=timing.spread,
            floor_share=None if floor is None else floor / timing.median,
        )


def _make_inputs(run: Run, shape: Shape, learns: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(shape.lengths)

    def drawn(heads: int) -> Tensor:
        x = torch.randn(tokens, heads, shape.head_dim, generator=generator)
        return x.to(run.device, run.dtype).requires_grad_(learns)

    return drawn(shape.heads), drawn(shape.kv_heads), drawn(shape.kv_heads)


def _make_timed_call(
    shape: Shape, way: str, sets: Sequence[tuple[Tensor, ...]], packing: Packing, learns: bool
) -> Callable[[int], None]:
    make = _pack_inputs(shape, packing) if shape.op == PACKED else _make_fixed_call(shape)

    def do(i: int) -> None:
        with _choose_backend(shape.op, way), torch.set_grad_enabled(learns):
            out = make(*sets[i])
            if learns:
                torch.autograd.grad(out.sum(), sets[i])

    return do


def _pack_inputs(shape: Shape, packing: Packing) -> Callable[..., Tensor]:
    scale = shape.head_dim**-0.5
    return lambda q, k, v: attend(q, k, v, packing, causal=shape.causal, scale=scale)


def _make_fixed_call(shape: Shape) -> Callable[..., Tensor]:
    """torch's attention on equal lengths, (sequences, heads, length, head_dim)."""
    grouped = shape.heads != shape.kv_heads

    def run(*qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (len(shape.lengths), -1)).transpose(1, 2) for x in qkv)
        return F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=grouped)

    return run


def _choose_backend(op: str, way: str) -> AbstractContextManager[Any]:
    return use_backends(**{op: way}) if op == PACKED else sdpa_kernel(BACKENDS[way])


def _is_served(do: Callable[[int], None]) -> bool:
    try:
        do(0)
    except CANNOT:
        return False
    return True


# The order ----------------------------------------------------------------------------------------------------------


def list_order(found: Sequence[Row], run: Run) -> list[dict[str, Any]]:
    """Rows of a table for `MMBLOCKS_ATTENTION_TABLE`, smaller heads first: of each shape the fastest way at the front."""
    told = f"measured: {describe_machine()}, {describe_versions()}, {format_today()}"
    return [
        {
            "op": shape.op,
            "order": [row.settings.partition("=")[2] for row in sorted(mine, key=_get_seconds)],
            "source": told,
            "head_dim": shape.head_dim,
            "causal": shape.causal,
            "learns": learns,
            "grouped": shape.heads != shape.kv_heads,
        }
        for shape in sorted(list_shapes(run), key=lambda s: s.head_dim)
        for learns in (False, True)
        if (mine := _select_rows(found, shape, learns))
    ]


def write_order(path: Path | str, found: Sequence[Row], run: Run) -> None:
    """The order as a file."""
    Path(path).write_text(json.dumps(list_order(found, run), indent=2) + "\n", encoding="utf-8")


def _select_rows(found: Sequence[Row], shape: Shape, learns: bool) -> list[Row]:
    quantity = "forward and backward" if learns else "forward"
    return [row for row in found if (row.scenario, row.quantity) == (shape.scenario(), quantity)]


def _get_seconds(row: Row) -> float:
    assert row.ours is not None
    return row.ours
