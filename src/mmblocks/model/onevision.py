"""The model: an encoder, a projector, visual tokenizers, learned marks and a language model, in one direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.batch import IGNORE, Batch, Instructions
from mmblocks.components import Backbone, ChatTemplate, Projector, VisionEncoder, before_projector, needs_text
from mmblocks.errors import DataError
from mmblocks.model.spec import ModelSpec
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy, row_cross_entropies
from mmblocks.tokenizers.router import Router


@dataclass(frozen=True, slots=True)
class Loss:
    """Sum of what is minimised over `rows`: cross entropies over labelled rows, or what an objective counts.

    metrics: further sums over the same rows, without gradients.
    """

    total: Tensor
    rows: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.rows, 1)


class OneVision(nn.Module):
    """LLaVA-OneVision (https://arxiv.org/abs/2408.03326): pictures, several pictures and clips in one model.

    Takes finished components; `mmblocks.build` makes them from names. `marks` are the learned rows that visual
    tokenizers insert, each of the backbone's width.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        projector: Projector,
        router: Router,
        backbone: Backbone,
        template: ChatTemplate,
        spec: ModelSpec,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.projector: Any = projector
        self.router = router
        self.backbone: Any = backbone
        self.template = template
        self.spec = spec
        scale = backbone.dim**-0.5  # as LLaVA-NeXT draws image_newline
        self.marks = nn.ParameterDict({m: nn.Parameter(torch.randn(backbone.dim) * scale) for m in router.marks})

    def forward(self, batch: Batch) -> Loss:
        """Cross entropy of the labelled rows of a packed batch."""
        total = linear_cross_entropy(self.hidden(batch), batch.targets, self.backbone.logits)
        return Loss(total, batch.num_labelled)

    def row_losses(self, batch: Batch) -> Tensor:
        """(labelled rows,) float32: cross entropy of each labelled row of a packed batch, in their order."""
        return row_cross_entropies(self.hidden(batch), batch.targets, self.backbone.logits)

    def row_hits(self, batch: Batch) -> Tensor:
        """(labelled rows,) bool: whether each labelled row's target is what the model would write there."""
        labelled = batch.targets != IGNORE
        return self.backbone.logits(self.hidden(batch)[labelled]).argmax(-1) == batch.targets[labelled]

    def logits(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary): every row's prediction."""
        return self.backbone.logits(self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """(tokens, dim): the backbone's last hidden states."""
        return self.backbone.hidden(self.embed(batch), batch.position_ids, batch.packing)

    def embed(self, batch: Batch) -> Tensor:
        """(tokens, dim): text embeddings with visual tokens in their places."""
        x = self.backbone.embed(batch.input_ids)
        if batch.plans:
            x = x.index_copy(0, batch.visual_positions, self.visual_tokens(batch).to(x.dtype))
        return x + 0 * self._idle(batch).to(x.dtype) if torch.is_grad_enabled() else x

    def _idle(self, batch: Batch) -> Tensor:
        """A number made of what a batch may leave out: every mark, and views without a plan (`Batch.with_blank_view`).

        Times 0 it is part of every step, since processes that share a sharded model have to run and differentiate the
        same weights at the same time.
        """
        total = torch.zeros((), device=self.device)
        for mark in self.marks.values():
            total = total + mark.sum()
        if batch.num_views and not batch.plans:
            total = total + self.projector(self.encoded(batch), *self._asked(batch)).sum()
        return total

    def visual_tokens(self, batch: Batch) -> Tensor:
        """(visual tokens, dim): the tokens of all visuals of the batch, in order."""
        marks = dict(self.marks.items())
        rows = [
            self.router.for_scenario(routed.scenario).assemble(views, routed.plan, marks)
            for views, routed in zip(self.projected(batch), batch.plans, strict=True)
        ]
        return torch.cat(rows)

    def projected(self, batch: Batch) -> Sequence[Tensor]:
        """(views, rows, columns, dim) for each visual: its features in the backbone's width."""
        asked = self._asked(batch)
        counts = [len(routed.plan.views) for routed in batch.plans]
        features = self.encoded(batch)
        encoded = features.split(counts)
        early = [
            before_projector(self.router.for_scenario(routed.scenario), views)
            for views, routed in zip(encoded, batch.plans, strict=True)
        ]
        if all(after is before for after, before in zip(early, encoded, strict=True)):
            return self.projector(features, *asked).split(counts)
        parts = [one.split(counts) for one in asked]
        return [self.projector(*part) for part in zip(early, *parts, strict=True)]

    def encoded(self, batch: Batch) -> Tensor:
        """(views, rows, columns, dim): the encoder's features of all views, or those that came with the batch."""
        return self.encoder(self.normalised(batch.pixels)) if batch.features is None else batch.features

    def _asked(self, batch: Batch) -> tuple[Instructions, ...]:
        """What the projector is given beside features: nothing, or the question about each view."""
        if not needs_text(self.projector):
            return ()
        if batch.instructions is None:
            raise DataError(
                "the projector reads the question, and this batch carries none; make batches of samples from "
                "Processor.of(model)."
            )
        return (batch.instructions,)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (views, 3, h, w) to what the encoder was trained on: (x / 255 - mean) / std."""
        dtype = next(self.encoder.parameters()).dtype
        mean, std = (
            torch.tensor(values, device=pixels.device, dtype=torch.float32).view(3, 1, 1)
            for values in (self.encoder.pixel_mean, self.encoder.pixel_std)
        )
        return ((pixels.float() / 255 - mean) / std).to(dtype)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
