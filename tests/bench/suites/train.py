"""Forward and backward of a mixed batch of four: a tiled image, several images, a video, words alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmblocks.compat import enable_gradient_checkpointing
from mmblocks.model.costs.flops import PassCounts
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS
from mmblocks.train.batches import BatchFeed
from tests.bench.suites import peer
from tests.bench.suites.cases import Case, make_cases
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.equal import require_same_gradients
from tests.bench.suites.floors import compute_floor_s, count_needed_flops
from tests.bench.suites.rows import Row
from tests.bench.suites.run import COMPILING_S, Run
from tests.bench.suites.sizes import make_model

NAME = "train"
MIXED = ("anyres", "two_images", "video", "text")
GRADIENTS_IN_16_BITS = 0.05
"""Most that gradients may differ in a narrower type: each of some hundred sums rounds at 2^-8, in another order."""


def measure(run: Run) -> Iterator[Row]:
    """No optimizer; every part is trained. The peer pads its rows; at its best it packs them and makes few logits.

    On a GPU a step of both begins with the inputs in pinned memory of the host, as a loader gives them.
    """
    run.require_time()
    model = make_model(run.scale, run.device, run.dtype).train()
    theirs = peer.make_peer(model).train()
    sets = make_cases(model, run, *MIXED, answers=True)
    feed = BatchFeed(run.device)
    fed = [case.batch.to("cpu").pack().pin_memory() if run.on_gpu else case.batch for case in sets]
    bound = {} if run.dtype == torch.float32 else {"bound": GRADIENTS_IN_16_BITS}
    error = require_same_gradients(NAME, model, theirs, sets[0], **bound)
    batch, passes = sets[0].batch, PassCounts.from_learning(dict.fromkeys(PARTS, 1.0))
    yield from compare_times(
        run,
        NAME,
        "mixed batch of 4",
        f"step without optimizer, {batch.num_tokens} tokens, {batch.num_views} views",
        lambda i: _take_step(lambda: model(feed.move(fed[i])).loss, model),
        [*_list_settings(run, model, theirs, sets)],
        error=error,
        floor_s=compute_floor_s(count_needed_flops(model, batch, batch.target_rows.counts, passes), run),
    )


def _list_settings(run: Run, model: OneVision, theirs: nn.Module, sets: list[Case]) -> Iterator[Peer]:
    """Padded with all logits, as its trainers do, on a GPU also with recomputation; packed with labelled logits."""
    padded_on_host = [_pin_inputs(case.padded) for case in sets]
    packed_on_host = [_pin_inputs(case.packed) for case in sets]

    def padded(of: object) -> Callable[[int], None]:
        def compute_loss(i: int) -> Tensor:
            moved = _move_inputs(padded_on_host[i], run.device)
            return peer.compute_padded_loss(of, replace(sets[i], padded={**sets[i].padded, **moved}))

        return lambda i: _take_step(lambda: compute_loss(i), of)

    def packed(of: object) -> Callable[[int], None]:
        def compute_loss(i: int) -> Tensor:
            moved = _move_inputs(packed_on_host[i], run.device)
            return peer.compute_packed_loss(of, replace(sets[i], packed={**sets[i].packed, **moved}))

        return lambda i: _take_step(lambda: compute_loss(i), of)

    yield Peer("as shipped", "padded, all logits", padded(theirs))
    yield Peer("best", "padded, all logits", padded(theirs))
    yield Peer("best", "packed by position ids, labelled logits", packed(theirs))
    if run.on_gpu:
        recomputing = peer.make_peer(model).train()
        enable_gradient_checkpointing(recomputing, {"use_reentrant": False})
        yield Peer("as shipped", "padded, all logits, gradient checkpointing", padded(recomputing))
        for words, fast in peer.list_fast_peers(model):
            yield Peer("best", f"packed by position ids, labelled logits, {words}", packed(fast.train()))
        if run.has_time(COMPILING_S):
            compiled = peer.make_compiled_peer(model).train()
            yield Peer("best", "packed by position ids, labelled logits, compiled", packed(compiled))


def _pin_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are on a GPU, in pinned memory of the host."""
    return {name: value.cpu().pin_memory() for name, value in inputs.items() if value.is_cuda}


def _move_inputs(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}


def _take_step(loss: Callable[[], Tensor], model: nn.Module) -> None:
    loss().backward()
    model.zero_grad(set_to_none=True)
