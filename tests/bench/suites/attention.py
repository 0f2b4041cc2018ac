"""Every backend of attention on this machine: packed and fixed shapes, forward and backward; what a call itself costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import IGNORE, Packing, RowIndex
from mmblocks.ops.attention import attend, attend_rows
from mmblocks.ops.attention.tune import AttentionShape, list_shapes, make_steps
from mmblocks.ops.choice import AUTO, REFERENCE, use_backends
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.floors import compute_floor_s
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, require_equal
from tests.bench.suites.timing import time_in_turns

NAME = "attention"
SMALL = 16, 4, 16
CALLS = 500
ANSWERS = {"one answer": (0.9,), "five answers": (0.1, 0.3, 0.5, 0.7, 0.9)}
"""Where answers begin in a sample, in parts of its length; each takes a twentieth of it."""


def measure(run: Run) -> Iterator[Row]:
    """A row for each backend that can run a shape; the others are compared with its reference."""
    for shape in list_shapes(run.device, tiny=run.tiny):
        for learns in (False, True):
            run.require_time(10, shape.name)
            yield from _measure_shape(run, shape, learns)
    for name, begins in ANSWERS.items():
        run.require_time(10, name)
        yield from _measure_rows(run, name, begins)
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


def _measure_rows(run: Run, name: str, begins: tuple[float, ...]) -> Iterator[Row]:
    """Rows that have a label, as the last layer computes them in training, beside attention of all rows."""
    samples, length, heads, kv_heads, dim = (4, 100, 4, 2, 16) if run.tiny else (4, 2000, 14, 2, 64)
    rows, packing = make_answer_rows(samples, length, begins)
    rows, packing = rows.to(run.device), packing.to(run.device)
    sizes = [(samples * length, n, dim) for n in (heads, kv_heads, kv_heads)]
    inputs = [torch.randn(size, device=run.device, dtype=run.dtype, requires_grad=True) for size in sizes]

    def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, packing, causal=True, scale=dim**-0.5)[rows.index]

    def attend_some(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_rows(q[rows.index], k, v, packing, rows, scale=dim**-0.5)

    def differentiate(way: Callable[..., Tensor], backend: str) -> None:
        with use_backends(rows_attention=backend):
            torch.autograd.grad(way(*inputs).sum(), inputs)

    backends = ("packed", REFERENCE)
    steps: dict[str, Callable[[int], None]] = {b: lambda _, b=b: differentiate(attend_some, b) for b in backends}
    require_equal(name, attend_some(*inputs), attend_all(*inputs))
    timings = time_in_turns({**steps, "all": lambda _: differentiate(attend_all, AUTO)}, run)
    for backend in backends:
        yield run.row(
            NAME,
            f"{len(rows)} rows of {samples}x{length}, {name}: d{dim}, {heads}/{kv_heads} heads",
            "forward and backward",
            "s",
            timings[backend].median,
            timings["all"].median,
            setting="naive",
            settings=f"rows_attention={backend}",
            spread=timings[backend].spread,
        )


def make_answer_rows(samples: int, length: int, begins: tuple[float, ...]) -> tuple[RowIndex, Packing]:
    """The rows of the answers in samples of one length, and the packing of these."""
    packing = Packing.from_lengths([length] * samples)
    targets = torch.full((samples, length), IGNORE)
    for begin in begins:
        targets[:, int(begin * length) :][:, : length // 20] = 0
    return RowIndex.from_targets(targets.flatten(), packing), packing


def describe_shape(shape: AttentionShape) -> str:
    mask, lengths = "causal" if shape.causal else "full", shape.lengths
    alike = len(set(lengths)) == 1
    sequences = f"{len(lengths)}x{lengths[0]}" if alike else "+".join(map(str, lengths))
    return f"{shape.name}: d{shape.head_dim}, {shape.heads}/{shape.kv_heads} heads, {mask}, {sequences}"
