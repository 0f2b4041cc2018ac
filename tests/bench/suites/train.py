"""Forward and backward of a mixed batch of four: a tiled image, several images, a video, words alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mmblocks.compat import enable_gradient_checkpointing
from mmblocks.model.onevision import OneVision
from tests.bench.suites import floors, peer
from tests.bench.suites.cases import Case, cases
from tests.bench.suites.comparing import Peer, compared
from tests.bench.suites.equal import require_same_gradients
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import model_of

NAME = "train"
MIXED = ("anyres", "two_images", "video", "text")
GRADIENTS_IN_16_BITS = 0.05
"""Most that gradients may differ in a narrower type: each of some hundred sums rounds at 2^-8, in another order."""


def measure(run: Run) -> Iterator[Row]:
    """No optimizer; every part is trained. The peer pads its rows; at its best it packs them and makes few logits."""
    run.require_time()
    model = model_of(run.scale, run.device, run.dtype).train()
    theirs = peer.peer_of(model).train()
    sets = cases(model, run, *MIXED, answers=True)
    bound = {} if run.dtype == torch.float32 else {"bound": GRADIENTS_IN_16_BITS}
    error = require_same_gradients(NAME, model, theirs, sets[0], **bound)
    batch = sets[0].batch
    yield from compared(
        run,
        NAME,
        "mixed batch of 4",
        f"step without optimizer, {batch.num_tokens} tokens, {batch.num_views} views",
        lambda i: _step(lambda: model(sets[i].batch).loss, model),
        [*_settings(run, model, theirs, sets)],
        error=error,
        floor_s=floors.time_of(3 * floors.forward_flops(model, batch, batch.num_labelled), run),
    )


def _settings(run: Run, model: OneVision, theirs: Any, sets: list[Case]) -> Iterator[Peer]:
    """Padded with all logits, as its trainers do, on a GPU also with recomputation; packed with labelled logits."""

    def padded(of: Any) -> Callable[[int], None]:
        return lambda i: _step(lambda: peer.padded_loss(of, sets[i]), of)

    def packed(of: Any) -> Callable[[int], None]:
        return lambda i: _step(lambda: peer.packed_loss(of, sets[i]), of)

    yield Peer("as shipped", "padded, all logits", padded(theirs))
    yield Peer("best", "padded, all logits", padded(theirs))
    yield Peer("best", "packed by position ids, labelled logits", packed(theirs))
    if run.on_gpu:
        recomputing = peer.peer_of(model).train()
        enable_gradient_checkpointing(recomputing, {"use_reentrant": False})
        yield Peer("as shipped", "padded, all logits, gradient checkpointing", padded(recomputing))


def _step(loss: Callable[[], Tensor], model: Any) -> None:
    loss().backward()
    model.zero_grad(set_to_none=True)
