"""Every backend of attention on this machine: packed and fixed shapes, forward and backward; what a call itself costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Packing
from mmblocks.ops.attention import attend
from mmblocks.ops.attention.tune import AttentionShape, list_shapes, make_steps
from mmblocks.ops.choice import REFERENCE
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.floors import compute_floor_s
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.timing import time_in_turns

NAME = "attention"
SMALL = 16, 4, 16
CALLS = 500


def measure(run: Run) -> Iterator[Row]:
    """A row for each backend that can run a shape; the others are compared with its reference."""
    for shape in list_shapes(run.device, tiny=run.tiny):
        for learns in (False, True):
            run.require_time(10, shape.name)
            yield from _measure_shape(run, shape, learns)
    yield from _measure_small_call(run)


def _measure_small_call(run: Run) -> Iterator[Row]:
    """The op on so few tokens that most of its time is not arithmetic, beside torch's own attention on the same tensors."""
    q, k, v, grad = (torch.randn(*SMALL, device=run.device, dtype=run.dtype) for _ in range(4))
    packing = Packing.from_lengths(SMALL[:1]).to(run.device)

    def attend_packed() -> Tensor:
        return attend(q, k, v, packing, causal=True, scale=0.25)

    def attend_plainly() -> Tensor:
        heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.25)
        return out.squeeze(0).transpose(0, 1)

    error = (attend_packed() - attend_plainly()).abs().max().item()
    for learns in (False, True):
        for x in (q, k, v):
            x.requires_grad_(learns)

        def repeat(attend_once: Callable[[], Tensor], learns: bool = learns) -> Callable[[int], None]:
            def run_calls(_: int) -> None:
                for _ in range(CALLS):
                    out = attend_once()
                    if learns:
                        torch.autograd.grad(out, (q, k, v), grad)

            return run_calls

        yield from compare_times(
            run,
            NAME,
            f"{SMALL[0]} tokens, {SMALL[1]} heads, d{SMALL[2]}, causal",
            f"{CALLS} calls, {'forward and backward' if learns else 'forward'}",
            repeat(attend_packed),
            [Peer("naive", "scaled_dot_product_attention", repeat(attend_plainly))],
            error=error,
        )


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
