"""Bytes a second of the gather that pools, with GELU before it: bilinear frames, 27x27 to 14x14 cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.gather_lerp import gelu_gather_lerp, with_transpose
from mmblocks.shapes import Size
from tests.bench.suites.ceil import measure_copy_rate
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, require_equal

NAME = "pool_kernel"
GRID, CELLS = Size(27, 27), Size(14, 14)
WIDTHS = (896, 3584)


def measure(run: Run) -> Iterator[Row]:
    """The naive side is torch's channels-last interpolation after its GELU; the floor is a copy of as many bytes."""
    frames = 32 if run.on_gpu else 1 if run.tiny else 4
    taps = with_transpose(make_bilinear_table(frames, GRID, CELLS)).to(run.device)
    ceiling = measure_copy_rate(run)
    for width in (64,) if run.tiny else WIDTHS:
        run.require_time(10, f"width {width}")
        yield from _measure_width(run, taps, frames, width, ceiling)


def _measure_width(run: Run, taps: GatherTable, frames: int, width: int, ceiling: float) -> Iterator[Row]:
    sets = [torch.randn(frames * GRID.area, width).to(run.device, run.dtype) for _ in range(run.input_sets)]
    exact = None if run.dtype == torch.float32 else _interpolate_maps(sets[0].float(), frames)
    error = require_equal(NAME, gelu_gather_lerp(sets[0], taps), _interpolate_maps(sets[0], frames), exact)
    moved = (sets[0].numel() + len(taps.rows) * width) * sets[0].element_size()
    learned = [x.clone().requires_grad_() for x in sets]
    for quantity, ways, times in (
        ("forward", _make_forward_calls(sets, taps, frames), 1),
        (
            "forward and backward",
            _make_backward_calls(learned, taps, frames),
            3,
        ),  # x is read again, and its gradient written
    ):
        yield from compare_times(
            run,
            NAME,
            f"{frames} frames at width {width}",
            quantity,
            ways[0],
            [Peer("naive", "GELU, then interpolate a channels-last view", ways[1])],
            error=error,
            floor_s=times * moved / ceiling,
            unit="B/s",
            amount=times * moved,
        )


def _make_forward_calls(sets: list[Tensor], taps: GatherTable, frames: int) -> list[Callable[[int], object]]:
    return [lambda i: gelu_gather_lerp(sets[i], taps), lambda i: _interpolate_maps(sets[i], frames)]


def _make_backward_calls(sets: list[Tensor], taps: GatherTable, frames: int) -> list[Callable[[int], object]]:
    def stepped(make: Callable[[Tensor], Tensor]) -> Callable[[int], object]:
        def step(i: int) -> None:
            make(sets[i]).sum().backward()
            sets[i].grad = None

        return step

    return [stepped(lambda x: gelu_gather_lerp(x, taps)), stepped(lambda x: _interpolate_maps(x, frames))]


def _interpolate_maps(x: Tensor, frames: int) -> Tensor:
    maps = F.gelu(x).view(frames, *GRID, -1).permute(0, 3, 1, 2)
    return F.interpolate(maps, size=tuple(CELLS), mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)


def make_bilinear_table(frames: int, grid: Size, cells: Size) -> GatherTable:
    """Four taps for each pooled cell of every frame: `F.interpolate` without aligned corners, as a table."""
    (y, wy), (x, wx) = _find_neighbours(grid.height, cells.height), _find_neighbours(grid.width, cells.width)
    rows = (y[:, None, :, None] * grid.width + x[None, :, None, :]).reshape(cells.area, 4)
    weights = (wy[:, None, :, None] * wx[None, :, None, :]).reshape(cells.area, 4)
    starts = torch.arange(frames) * grid.area
    return GatherTable((starts[:, None, None] + rows).flatten(0, 1), weights.repeat(frames, 1), frames * grid.area)


def _find_neighbours(size: int, cells: int) -> tuple[Tensor, Tensor]:
    """(cells, 2): the two places that each cell reads along one side, and their weights."""
    at = ((torch.arange(cells) + 0.5) * size / cells - 0.5).clamp(min=0)
    low = at.long().clamp(max=size - 1)
    share = (at - low).float()
    return torch.stack([low, (low + 1).clamp(max=size - 1)], 1), torch.stack([1 - share, share], 1)
