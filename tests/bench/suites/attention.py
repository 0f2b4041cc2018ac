"""Every backend of attention on this machine: packed and fixed shapes, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

from mmblocks.ops.attention.tune import AttentionShape, list_shapes, make_steps
from mmblocks.ops.choice import REFERENCE
from tests.bench.suites.floors import compute_floor_s
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.timing import time_in_turns

NAME = "attention"


def measure(run: Run) -> Iterator[Row]:
    """A row for each backend that can run a shape; the others are compared with its reference."""
    for shape in list_shapes(run.device, tiny=run.tiny):
        for learns in (False, True):
            run.require_time(10, shape.name)
            yield from _measure_shape(run, shape, learns)


def _measure_shape(run: Run, shape: AttentionShape, learns: bool) -> Iterator[Row]:
    timings = time_in_turns(make_steps(shape, learns, run.device, run.dtype, run.input_sets), run)
    floor = compute_floor_s(shape.count_flops() * (3.5 if learns else 1), run)
    for backend, timing in timings.items():
        compared = backend != REFERENCE and REFERENCE in timings
        yield run.row(
            NAME,
            describe_shape(shape),
            "forward and backward" if learns else "forward",
            "s",
            timing.median,
            timings[REFERENCE].median if compared else None,
            setting="naive" if compared else "",
            settings=f"{shape.op}={backend}",
            spread=timing.spread,
            floor_share=None if floor is None else floor / timing.median,
        )


def describe_shape(shape: AttentionShape) -> str:
    mask, lengths = "causal" if shape.causal else "full", shape.lengths
    alike = len(set(lengths)) == 1
    sequences = f"{len(lengths)}x{lengths[0]}" if alike else "+".join(map(str, lengths))
    return f"{shape.name}: d{shape.head_dim}, {shape.heads}/{shape.kv_heads} heads, {mask}, {sequences}"
