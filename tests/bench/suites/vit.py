"""Tiles a second through the vision tower, pixels on the device to features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from mmblocks.batch import Batch
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.costs.flops import ForwardFlops
from mmblocks.model.onevision import OneVision
from tests.bench.suites import peer
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.floors import compute_floor_s
from tests.bench.suites.rows import Row
from tests.bench.suites.run import COMPILING_S, Run, require_equal
from tests.bench.suites.sizes import make_model

NAME = "vit"


def measure(run: Run) -> Iterator[Row]:
    """Ours takes uint8, the peer normalised pixels."""
    model = make_model(run.scale, run.device, run.dtype)
    theirs = peer.make_peer(model)
    compiled = peer.make_compiled_peer(model) if run.on_gpu and run.has_time(COMPILING_S) else None
    for tiles in (1, 10, 32, 128) if run.on_gpu else (1, 4):
        run.require_time(before=f"{tiles} tiles")
        yield from _measure_tiles(run, model, theirs, compiled, tiles)


@torch.no_grad()
def _measure_tiles(run: Run, model: OneVision, theirs: nn.Module, compiled: nn.Module | None, tiles: int) -> list[Row]:
    sets = [_make_pixel_inputs(run, model, tiles, seed) for seed in range(run.input_sets)]
    floats = [model.normalise_pixels(batch.pixels) for batch in sets]
    exact = None
    if run.dtype != torch.float32:
        exact = _make_features(peer.copy_to_float32(theirs), floats[0].float())
    error = require_equal(
        f"{NAME} {tiles}", model.encode_batch(sets[0]).flatten(1, 2), _make_features(theirs, floats[0]), exact
    )
    settings = [
        Peer("as shipped", "", lambda i: _make_features(theirs, floats[i])),
        Peer("best", "", lambda i: _make_features(theirs, floats[i])),
    ]
    if compiled is not None:
        settings.append(Peer("best", "tower compiled", lambda i: _make_features(compiled, floats[i])))
    encoder = ForwardFlops.from_dry_build(dry_build(model.spec)).encoder
    found = compare_times(
        run,
        NAME,
        f"{tiles} tiles",
        "encoded",
        lambda i: model.encode_batch(sets[i]),
        settings,
        error=error,
        floor_s=compute_floor_s(tiles * encoder, run),
        unit="tiles/s",
        amount=tiles,
    )
    return list(found)


def _make_pixel_inputs(run: Run, model: OneVision, tiles: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (tiles, 3, *model.encoder.view_px)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return replace(Batch.make_empty(model.encoder.view_px), pixels=pixels).to(run.device)


def _make_features(theirs: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(tiles, cells, channels), asked for as `get_image_features` does."""
    return theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
