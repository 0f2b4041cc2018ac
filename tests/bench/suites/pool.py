"""From a clip's features to the language model's input: projector, pooling and merging, at the released widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mmblocks.model.onevision import OneVision
from mmblocks.reprs import format_by_shape
from tests.bench.suites import peer
from tests.bench.suites.cases import Case, make_case, make_conversation, show_video
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, require_equal
from tests.bench.suites.sizes import LEAST, Scale, find_scale, make_model

NAME = "pool"
WIDTHS = {896: 4, 3584: 2}
"""Frames that are projected at each width of language model: 0.5B and 7B."""


def measure(run: Run) -> Iterator[Row]:
    """The naive side is the peer's own code: all cells projected, permuted into a copy, interpolated, scattered."""
    for width, frames in WIDTHS.items():
        run.require_time(before=f"width {width}")
        yield from _measure_width(run, width, frames)


def make_scale_at_width(run: Run, width: int, frames: int) -> Scale:
    """A model whose features and projector have the released widths, and whose towers are as small as can be."""
    shown = replace(find_scale(LEAST).shown, frames=8 * frames if run.on_gpu else frames)
    if run.tiny:
        return replace(find_scale(LEAST), shown=shown)
    tower = {"name": "siglip", "depth": 1, "heads": 16, "mlp_dim": 16, "layer": -1}
    words = {**find_scale(LEAST).backbone, "dim": width, "heads": 7, "kv_heads": 1, "mlp_dim": 16}
    return Scale(f"width {width}", tower, {**words, "depth": 1}, shown)


@dataclass(frozen=True, slots=True)
class PoolingPair:
    """Both sides from the same features (frames, rows, columns, channels) on."""

    model: OneVision
    theirs: nn.Module
    case: Case
    features: Tensor
    __repr__ = format_by_shape

    def ours(self) -> Tensor:
        """(tokens, dim): the language model's input."""
        return self.model.embed_tokens(replace(self.case.batch, features=self.features))

    def naive(self) -> Tensor:
        """The same by the lines of transformers' `get_video_features` and `forward` after the tower."""
        inner, ids = self.theirs.model, self.case.padded["input_ids"]
        projected = inner.multi_modal_projector(self.features.flatten(1, 2))
        rows = inner.apply_pooling(projected).flatten(0, 1)
        rows = torch.cat((rows, inner.image_newline[None]))
        words = inner.get_input_embeddings()(ids)
        mask = (ids == inner.config.video_token_id).unsqueeze(-1).expand_as(words)
        return words.masked_scatter(mask, rows)[0]


def _measure_width(run: Run, width: int, frames: int) -> Iterator[Row]:
    scale = make_scale_at_width(run, width, frames)
    model = make_model(scale, run.device, run.dtype)
    theirs = peer.make_peer(model)
    rng = np.random.default_rng(0)
    case = make_case(model, [make_conversation(show_video(scale.shown, rng))]).to(run.device, run.dtype)
    sides = [_make_side(run, model, theirs, case, seed) for seed in range(run.input_sets)]
    with torch.no_grad():
        error = require_equal(f"{NAME} at {width}", sides[0].ours(), sides[0].naive(), _compute_exact(run, sides[0]))
        for quantity, backward in (("forward", False), ("forward and backward", True)):
            with torch.set_grad_enabled(backward):
                yield from compare_times(
                    run,
                    NAME,
                    f"{scale.shown.frames} frames at width {model.backbone.dim}",
                    quantity,
                    lambda i: _run_side(sides[i].ours, sides[i], backward),  # noqa: B023 used in this turn of the loop
                    [Peer("naive", "the peer's own lines", lambda i: _run_side(sides[i].naive, sides[i], backward))],  # noqa: B023
                    error=error,
                )


def _make_side(run: Run, model: OneVision, theirs: nn.Module, case: Case, seed: int) -> PoolingPair:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(case.batch.plans[0].plan.views), *model.encoder.grid, model.encoder.dim)
    features = torch.randn(shape, generator=generator).to(run.device, run.dtype)
    return PoolingPair(model, theirs, case, features.requires_grad_())


def _compute_exact(run: Run, side: PoolingPair) -> Tensor | None:
    if run.dtype == torch.float32:
        return None
    wide = replace(side, theirs=peer.copy_to_float32(side.theirs), features=side.features.float())
    return wide.naive()


def _run_side(make: object, side: PoolingPair, backward: bool) -> None:
    rows = make()
    if backward:
        rows.sum().backward()
        side.features.grad = None
        for model in (side.model, side.theirs):
            model.zero_grad(set_to_none=True)
