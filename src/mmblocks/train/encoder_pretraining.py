"""A brief pretraining for encoders without a checkpoint: tell colour, shape and place in every cell of TinyWorld pictures.

It stands where a large model takes SigLIP's weights: the curriculum then begins with an encoder that sees.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.optim import AdamW

from mmblocks.data import tinyworld
from mmblocks.data.media.pixels import render
from mmblocks.geometry.views import squashed
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import Size
from mmblocks.train.distributed import World
from mmblocks.train.finite import Guard
from mmblocks.train.optim import schedule, set_rate
from mmblocks.train.reports.progress import Progress
from mmblocks.train.stages import Sight

ADVICE = ": start the run again with another sight.rate, sight.warmup or sight.clip, and this pretraining begins anew"


def learn_to_see(model: OneVision, sight: Sight, *, budget: float, seed: int, metrics: Path) -> None:
    """Train the encoder alone. What happens depends on the seed and the encoder's weights only.

    Raises `TrainingError` before a loss or gradients that are not finite are learned.
    """
    torch.manual_seed(seed)
    head = nn.Linear(model.encoder.dim, sum(tinyworld.CELL_LABELS)).to(model.device)
    model.encoder.requires_grad_(True).train()
    learning = [*model.encoder.parameters(), *head.parameters()]
    optimizer = AdamW(learning, lr=sight.rate, weight_decay=sight.weight_decay)
    optimizer.param_groups[0]["base_lr"] = sight.rate
    guard = Guard("the encoder's pretraining (sight)", lambda step: ADVICE)
    steps = max(1, round(sight.steps * budget))
    with Progress("sight", 0, steps, metrics, log_every=50) as progress:
        for step in range(steps):
            pixels, labels = _batch(model, range(step * sight.batch_size, (step + 1) * sight.batch_size), seed)
            loss = _loss(_cells(model, head, pixels), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(learning, sight.clip)
            guard.check(step, loss.detach(), norm, ())
            set_rate(optimizer, schedule(step, steps, sight.warmup))
            optimizer.step()
            progress.report(step, loss.item(), labels.shape[1])
    guard.require_weights(steps, learning, World(0, 1, model.device))
    model.encoder.eval()


def _batch(model: OneVision, indices: range, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures squashed to one view, and the (4, cells) numbers of their cells."""
    made = [tinyworld.labelled_picture(i, seed=seed) for i in indices]
    views = [
        render(picture, [squashed(0, Size(picture.height, picture.width), model.encoder.view_px)], (0, 0, 0))
        for picture, _ in made
    ]
    labels = torch.cat([torch.from_numpy(cells).flatten(1) for _, cells in made], dim=1)
    return torch.cat(views).to(model.device), labels.to(model.device)


def _cells(model: OneVision, head: nn.Module, pixels: Tensor) -> Tensor:
    """(views, 3, h, w) to (cells, labels): features averaged over TinyWorld's grid, then named."""
    features = rearrange(model.encode(pixels), "v h w d -> v d h w")
    per_cell = F.adaptive_avg_pool2d(features, tinyworld.GRID)
    return head(rearrange(per_cell, "v d h w -> (v h w) d"))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Colour, shape, row and column told apart: the sum of four cross entropies."""
    per_question = zip(logits.split(tinyworld.CELL_LABELS, dim=1), labels, strict=True)
    return torch.stack([F.cross_entropy(said, right) for said, right in per_question]).sum()
