"""A brief pretraining for encoders without a checkpoint: tell colour, shape and place in every cell of TinyWorld images.

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
from mmblocks.data.media.pixels import render_views
from mmblocks.geometry.views import make_squashed_view
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import Size
from mmblocks.train.distributed import World
from mmblocks.train.finite import FiniteGuard
from mmblocks.train.optim import compute_lr_factor, scale_learning_rates
from mmblocks.train.reports.progress import Progress
from mmblocks.train.stages import EncoderPretraining

ADVICE = ": start the run again with another encoder_pretraining.lr, encoder_pretraining.warmup or encoder_pretraining.max_grad_norm, and this pretraining begins anew"


def pretrain_encoder(
    model: OneVision, encoder_pretraining: EncoderPretraining, *, budget: float, seed: int, metrics: Path
) -> None:
    """Train the encoder alone. What happens depends on the seed and the encoder's weights only.

    Raises `TrainingError` before a loss or gradients that are not finite are learned.
    """
    torch.manual_seed(seed)
    head = nn.Linear(model.encoder.dim, sum(tinyworld.CELL_LABELS)).to(model.device)
    model.encoder.requires_grad_(True).train()
    learning = [*model.encoder.parameters(), *head.parameters()]
    optimizer = AdamW(learning, lr=encoder_pretraining.lr, weight_decay=encoder_pretraining.weight_decay)
    optimizer.param_groups[0]["base_lr"] = encoder_pretraining.lr
    guard = FiniteGuard("the encoder's pretraining (encoder_pretraining)", lambda step: ADVICE)
    steps = max(1, round(encoder_pretraining.steps * budget))
    with Progress("encoder_pretraining", 0, steps, metrics, log_every=50) as progress:
        for step in range(steps):
            pixels, labels = _make_batch(
                model,
                range(step * encoder_pretraining.global_batch_size, (step + 1) * encoder_pretraining.global_batch_size),
                seed,
            )
            loss = _loss(_cells(model, head, pixels), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(learning, encoder_pretraining.max_grad_norm)
            guard.check_step(step, loss.detach(), norm, ())
            scale_learning_rates(optimizer, compute_lr_factor(step, steps, encoder_pretraining.warmup))
            optimizer.step()
            progress.report_step(step, loss.item(), labels.shape[1])
    guard.require_finite_weights(steps, learning, World(0, 1, model.device))
    model.encoder.eval()


def _make_batch(model: OneVision, indices: range, seed: int) -> tuple[Tensor, Tensor]:
    """Images squashed to one view, and the (4, cells) numbers of their cells."""
    made = [tinyworld.make_labelled_image(i, seed=seed) for i in indices]
    views = [
        render_views(image, [make_squashed_view(0, Size(image.height, image.width), model.encoder.view_px)], (0, 0, 0))
        for image, _ in made
    ]
    labels = torch.cat([torch.from_numpy(cells).flatten(1) for _, cells in made], dim=1)
    return torch.cat(views).to(model.device), labels.to(model.device)


def _cells(model: OneVision, head: nn.Module, pixels: Tensor) -> Tensor:
    """(views, 3, h, w) to (cells, labels): features averaged over TinyWorld's grid, then named."""
    features = rearrange(model.encode_pixels(pixels), "v h w d -> v d h w")
    per_cell = F.adaptive_avg_pool2d(features, tinyworld.GRID)
    return head(rearrange(per_cell, "v d h w -> (v h w) d"))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Colour, shape, row and column told apart: the sum of four cross entropies."""
    per_question = zip(logits.split(tinyworld.CELL_LABELS, dim=1), labels, strict=True)
    return torch.stack([F.cross_entropy(said, right) for said, right in per_question]).sum()
