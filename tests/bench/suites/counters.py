"""What both sides compute and keep, counted: the same on every machine, so that tests can hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mmblocks.components import encoders
from mmblocks.model.costs.activations import count_activations
from mmblocks.model.onevision import OneVision
from tests.bench.suites import counting, ours, peer
from tests.bench.suites.cases import Case, make_case, make_cases, make_conversation, show_video
from tests.bench.suites.pool import WIDTHS, PoolingPair, make_scale_at_width
from tests.bench.suites.rows import PeerSetting, Row
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import make_model
from tests.bench.suites.train import MIXED

NAME = "counters"
PREFILL = ("base", "anyres", "images", "video")


def measure(run: Run) -> Iterator[Row]:
    """Every counter of this size; the projector's at the released widths, without data."""
    model = make_model(run.scale, run.device, run.dtype)
    theirs = peer.make_peer(model)
    for scenario in PREFILL:
        case = make_cases(model, run, scenario)[0]
        yield from count_prefill(run, model, theirs, scenario, case)
        yield count_blocks_run(run, model, theirs, scenario, case)
    yield from count_pooling_path(run, model, theirs, make_cases(model, run, "video")[0])
    case = make_cases(model, run, *MIXED, answers=True)[0]
    yield from count_training(run, model.train(), theirs.train(), case)
    for width in WIDTHS:
        yield count_projector_flops(run, width)


@torch.no_grad()
def count_prefill(run: Run, model: OneVision, theirs: nn.Module, scenario: str, case: Case) -> Iterator[Row]:
    """FLOPs from pixels to the last row's logits."""
    mine = counting.count_flops(lambda: ours.compute_last_logits(model, case.batch))
    every = counting.count_flops(lambda: peer.compute_last_logits(theirs, case.padded, all_logits=True))
    last = counting.count_flops(lambda: peer.compute_last_logits(theirs, case.padded, all_logits=False))
    yield run.row(NAME, scenario, "to last logits", "FLOPs", mine, every, setting="as shipped")
    yield run.row(NAME, scenario, "to last logits", "FLOPs", mine, last, setting="best", settings="logits_to_keep=1")


@torch.no_grad()
def count_blocks_run(run: Run, model: OneVision, theirs: nn.Module, scenario: str, case: Case) -> Row:
    """Blocks of the vision tower times views that pass them; the naive side runs all blocks on all views."""
    mine = _count_views_through(model.encoder.vision_model, lambda: model.encode_batch(case.batch))
    views = sum(len(routed.plan.views) for routed in case.batch.plans)
    depth = encoders.resolve_settings(model.spec.encoder)["depth"]
    return run.row(NAME, scenario, "encoder blocks run", "blocks x views", mine, depth * views, setting="naive")


@torch.no_grad()
def count_pooling_path(run: Run, model: OneVision, theirs: nn.Module, case: Case) -> Iterator[Row]:
    """Copies of features between the vision tower's last block and the language model's first."""
    mine = counting.Between(model.encoder, model.backbone.lm.get_decoder())
    with mine:
        ours.compute_last_logits(model, case.batch)
    other = counting.Between(theirs.model.vision_tower, theirs.model.language_model)
    with other:
        peer.compute_last_logits(theirs, case.padded, all_logits=False)
    yield run.row(NAME, "video", "copies in the pooling path", "calls", mine.copies, other.copies, setting="as shipped")
    made = (sum(between.elements.values()) for between in (mine, other))
    yield run.row(NAME, "video", "numbers made in the pooling path", "numbers", *made, setting="as shipped")


def count_training(run: Run, model: OneVision, theirs: nn.Module, case: Case) -> Iterator[Row]:
    """FLOPs, bytes kept and rows that meet the vocabulary of a step on a mixed batch of four."""
    sides: tuple[tuple[PeerSetting, str, Any], ...] = (
        ("as shipped", "padded, all logits", lambda: peer.compute_padded_loss(theirs, case)),
        ("best", "packed by position ids, labelled logits", lambda: peer.compute_packed_loss(theirs, case)),
    )
    mine = _count_step(model, model.backbone.lm.get_output_embeddings(), lambda: model(case.batch).loss)
    for setting, told, loss in sides:
        other = _count_step(theirs, theirs.lm_head, loss)
        for (quantity, unit, own), (_, _, found) in zip(mine, other, strict=True):
            yield run.row(NAME, "mixed batch of 4", quantity, unit, own, found, setting=setting, settings=told)


def count_projector_flops(run: Run, width: int) -> Row:
    """FLOPs of the projector on a clip at a released width: the head on pooled cells, and not on all of them."""
    scale = make_scale_at_width(replace(run, tiny=False, device=torch.device("cpu")), width, frames=2)
    model = make_model(scale, torch.device("meta"), torch.float32)
    asked = make_conversation(show_video(scale.shown, np.random.default_rng(0)))
    case = make_case(model, [asked]).to(torch.device("meta"), torch.float32)
    features = torch.empty(scale.shown.frames, *model.encoder.grid, model.encoder.dim, device="meta")
    side = PoolingPair(model, peer.make_peer(model), case, features)
    with torch.no_grad():
        mine = counting.count_flops_in_modules(side.ours, _list_linears(model.projector))
        other = counting.count_flops_in_modules(side.naive, _list_linears(side.theirs.model.multi_modal_projector))
    return run.row(NAME, f"clip at width {width}", "projector", "FLOPs", mine, other, setting="naive")


def _count_step(model: nn.Module, vocabulary: nn.Module, loss: object) -> list[tuple[str, str, float]]:
    with counting.count_rows(vocabulary) as met:
        kept = count_activations(model, (), loss).saved
    total = counting.count_flops(lambda: loss().backward())
    model.zero_grad(set_to_none=True)
    return [
        ("forward and backward", "FLOPs", total),
        ("kept for backward", "bytes", kept),
        ("rows that meet the vocabulary", "rows", met["rows"]),
    ]


def _count_views_through(tower: object, run: object) -> int:
    """Views that pass through blocks, added up over blocks."""
    found: list[int] = []
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: found.append(len(_take_first(args, kwargs))), with_kwargs=True
        )
        for block in tower.encoder.layers
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def _take_first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _list_linears(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]
