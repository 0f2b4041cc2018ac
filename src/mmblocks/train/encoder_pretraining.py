"""A short pretraining for encoders without a checkpoint: classify colour, shape and place in every cell of TinyWorld images.

It takes the place of SigLIP's weights in a large model, so that the curriculum begins with an encoder that has learned.
"""

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
from mmblocks.train.finite_guard import FiniteGuard
from mmblocks.train.optim import compute_lr_factor, scale_learning_rates
from mmblocks.train.reports.progress import Progress
from mmblocks.train.stages import EncoderPretraining

SETTING = "encoder_pretraining"
ADVICE = (
    f": run again with another {SETTING}.lr, {SETTING}.warmup or {SETTING}.max_grad_norm; this pretraining begins anew"
)


def pretrain_encoder(
    model: OneVision, settings: EncoderPretraining, *, budget: float, seed: int, metrics: Path
) -> None:
    """Train the encoder alone. The result depends only on the seed and the encoder's weights.

    Raises `TrainingError` before an update with a loss or gradients that are not finite.
    """
    torch.manual_seed(seed)
    head = nn.Linear(model.encoder.dim, sum(tinyworld.CELL_LABELS)).to(model.device)
    model.encoder.requires_grad_(True).train()
    parameters = [*model.encoder.parameters(), *head.parameters()]
    optimizer = AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    optimizer.param_groups[0]["base_lr"] = settings.lr
    guard = FiniteGuard(f"the encoder's pretraining ({SETTING})", lambda step: ADVICE)
    steps = max(1, round(settings.steps * budget))
    with Progress(SETTING, 0, steps, metrics, log_every=50) as progress:
        for step in range(steps):
            first = step * settings.global_batch_size
            pixels, labels = _make_batch(model, range(first, first + settings.global_batch_size), seed)
            loss = _compute_loss(model, head, pixels, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            guard.check_step(step, loss.detach(), norm, ())
            scale_learning_rates(optimizer, compute_lr_factor(step, steps, settings.warmup))
            optimizer.step()
            progress.report_step(step, loss.item(), labels.shape[1])
    guard.require_finite_weights(steps, parameters, World(0, 1, model.device))
    model.encoder.eval()


def _make_batch(model: OneVision, indices: range, seed: int) -> tuple[Tensor, Tensor]:
    """Images resized to one view, and the (4, cells) labels of their cells."""
    examples = [tinyworld.make_labelled_image(i, seed=seed) for i in indices]
    view_px, resizer = model.encoder.view_px, model.images.resize
    views = [
        render_views(image, [make_squashed_view(0, Size(image.height, image.width), view_px)], (0, 0, 0), resizer)
        for image, _ in examples
    ]
    labels = torch.cat([torch.from_numpy(cells).flatten(1) for _, cells in examples], dim=1)
    return torch.cat(views).to(model.device), labels.to(model.device)


def _compute_loss(model: OneVision, head: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The sum of four cross entropies, of colour, shape, row and column, from features averaged over TinyWorld's cells."""
    features = rearrange(model.encode_pixels(pixels), "v h w d -> v d h w")
    per_cell = F.adaptive_avg_pool2d(features, tinyworld.GRID)
    logits = head(rearrange(per_cell, "v d h w -> (v h w) d"))
    per_label = zip(logits.split(tinyworld.CELL_LABELS, dim=1), labels, strict=True)
    return torch.stack([F.cross_entropy(predicted, target) for predicted, target in per_label]).sum()
