"""From pixels on the device to the logits of the last row: video, tiled images, several images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmblocks.model.onevision import OneVision
from tests.bench.suites import ours, peer
from tests.bench.suites.cases import Case, make_cases
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.equal import require_same_logits
from tests.bench.suites.floors import compute_floor_s, count_needed_flops
from tests.bench.suites.rows import Row
from tests.bench.suites.run import COMPILING_S, Run
from tests.bench.suites.sizes import make_model

NAME = "prefill"
SHOWN = ("base", "anyres", "images", "two_images", "video")
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def measure(run: Run) -> Iterator[Row]:
    """Ours takes uint8 pixels; the peer takes them normalised, as its processor hands them over."""
    model = make_model(run.scale, run.device, run.dtype)
    theirs = peer.make_peer(model)
    for scenario in SHOWN:
        run.require_time(before=scenario)
        yield from _measure_scenario(run, model, theirs, scenario)


@torch.no_grad()
def _measure_scenario(run: Run, model: OneVision, theirs: nn.Module, scenario: str) -> list[Row]:
    sets = make_cases(model, run, scenario)
    error = require_same_logits(scenario, model, theirs, sets[0])
    batch = sets[0].batch
    found = compare_times(
        run,
        NAME,
        scenario,
        f"time to last logits, {batch.num_tokens} tokens, {batch.num_views} views",
        lambda i: ours.compute_last_logits(model, sets[i].batch),
        [*list_peer_settings(run, model, theirs, sets)],
        error=error,
        floor_s=compute_floor_s(count_needed_flops(model, batch, [1] * len(batch.packing.lengths)), run),
    )
    return list(found)


def list_peer_settings(run: Run, model: OneVision, theirs: nn.Module, sets: list[Case]) -> Iterator[Peer]:
    """The peer as shipped, and every setting that makes it faster on this device."""
    yield Peer("as shipped", "", lambda i: peer.compute_last_logits(theirs, sets[i].padded, all_logits=True))
    yield Peer("best", "logits_to_keep=1", lambda i: peer.compute_last_logits(theirs, sets[i].padded, all_logits=False))
    if not run.on_gpu:
        return

    def with_cudnn(i: int) -> Any:
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return peer.compute_last_logits(theirs, sets[i].padded, all_logits=False)

    yield Peer("best", "logits_to_keep=1, cuDNN attention first", with_cudnn)
    for words, fast in peer.list_fast_peers(model):
        yield Peer(
            "best",
            f"logits_to_keep=1, {words}",
            lambda i, fast=fast: peer.compute_last_logits(fast, sets[i].padded, all_logits=False),
        )
    if run.has_time(COMPILING_S):
        compiled = peer.make_compiled_peer(model)
        yield Peer(
            "best",
            "logits_to_keep=1, tower and language model compiled",
            lambda i: peer.compute_last_logits(compiled, sets[i].padded, all_logits=False),
        )
