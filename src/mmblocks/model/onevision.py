"""The model: an encoder, a projector, visual tokenizers, learned marks and a language model, in one direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.batch import Batch, GatherLayout, Instructions, RowIndex
from mmblocks.components import Backbone, ChatTemplate, Projector, VisionEncoder, needs_text
from mmblocks.errors import DataError
from mmblocks.image_reading import ImageReading
from mmblocks.model.assembled import assemble_visual_tokens
from mmblocks.model.modes import keep_frozen_in_evaluation
from mmblocks.model.spec import ModelSpec
from mmblocks.ops.gather_lerp import gather_lerp, gelu_gather_lerp
from mmblocks.ops.graphs import CUDAGraphed
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy, row_cross_entropies
from mmblocks.reprs import format_by_shape
from mmblocks.tokenizers.router import Router


@dataclass(frozen=True, slots=True)
class Loss:
    """Sum of what is minimised over `rows`: cross entropies over labelled rows, or what an objective counts.

    metrics: further sums over the same rows, without gradients.
    """

    total: Tensor
    rows: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    __repr__ = format_by_shape

    @property
    def loss(self) -> Tensor:
        return self.total / max(self.rows, 1)


class OneVision(nn.Module):
    """LLaVA-OneVision (https://arxiv.org/abs/2408.03326): images, several images and videos in one model.

    Takes finished components; `mmblocks.build` makes them from names. `learned_tokens` are the learned rows that visual
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
        self._graphed_encoder = CUDAGraphed(self.encoder)
        scale = backbone.dim**-0.5  # as LLaVA-NeXT draws image_newline
        self.learned_tokens = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(backbone.dim) * scale) for m in router.learned_tokens}
        )

    def train(self, mode: bool = True) -> OneVision:
        """Training mode where something learns (see `modes`); what is frozen stays in evaluation mode."""
        super().train(mode)
        keep_frozen_in_evaluation(self)
        return self

    # What is learned ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Loss:
        """Cross entropy of the labelled rows of a packed batch."""
        rows = batch.target_rows
        total = linear_cross_entropy(
            self.compute_hidden_states(batch, rows), batch.targets[rows.index], **self._head_arguments
        )
        return Loss(total, len(rows))

    def compute_row_losses(self, batch: Batch) -> Tensor:
        """(labelled rows,) float32: cross entropy of each labelled row of a packed batch, in their order."""
        rows = batch.target_rows
        return row_cross_entropies(
            self.compute_hidden_states(batch, rows), batch.targets[rows.index], **self._head_arguments
        )

    def compute_row_hits(self, batch: Batch) -> Tensor:
        """(labelled rows,) bool: whether each labelled row's target is what the model would write there."""
        rows = batch.target_rows
        return (
            self.backbone.compute_logits(self.compute_hidden_states(batch, rows)).argmax(-1)
            == batch.targets[rows.index]
        )

    def compute_logits(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary): every row's prediction."""
        return self.backbone.compute_logits(self.compute_hidden_states(batch))

    def compute_hidden_states(self, batch: Batch, rows: RowIndex | None = None) -> Tensor:
        """(tokens, dim), or (rows, dim) where only some are asked for: the backbone's last hidden states."""
        return self.backbone.compute_hidden_states(self.embed_tokens(batch), batch.position_ids, batch.packing, rows)

    @property
    def _head_arguments(self) -> dict[str, Any]:
        return {"logits": self.backbone.compute_logits, "vocabulary": self.backbone.vocab_size}

    # The sequence ---------------------------------------------------------------------------------------------------

    def embed_tokens(self, batch: Batch) -> Tensor:
        """(tokens, dim): text embeddings with visual tokens in their places."""
        x = self.backbone.embed_tokens(batch.input_ids)
        if batch.plans:
            x = self._insert_visuals(x, batch)
        if torch.is_grad_enabled() and batch.layout is None:
            x[:1] += 0 * self._touch_unused_parameters(batch).to(x.dtype)
        return x

    def compute_visual_tokens(self, batch: Batch) -> Tensor:
        """(visual tokens, dim): the tokens of all visuals of the batch, in order."""
        return self._insert_visuals(self.backbone.embed_tokens(batch.input_ids), batch)[batch.visual_positions]

    def _insert_visuals(self, x: Tensor, batch: Batch) -> Tensor:
        """The sequence (tokens, dim) with visual rows written into it, in place."""
        layout = batch.layout
        if layout is None:
            return x.index_copy_(0, batch.visual_positions, assemble_visual_tokens(self, batch).to(x.dtype))
        x.index_copy_(0, layout.positions, self._gather_visual_rows(batch, layout).to(x.dtype))
        if self.learned_tokens:
            x.index_copy_(
                0,
                layout.learned_token_positions,
                self._numbered_marks().index_select(0, layout.learned_token_ids).to(x.dtype),
            )
        return x

    def _numbered_marks(self) -> Tensor:
        """(marks, dim): those that the router's tokenizers insert, in its order, then what other stages have learned.

        All of them, used or not: processes that share a sharded model differentiate the same weights.
        """
        names = self.router.learned_tokens
        return torch.stack(
            [self.learned_tokens[name] for name in (*names, *(m for m in self.learned_tokens if m not in names))]
        )

    def _gather_visual_rows(self, batch: Batch, layout: GatherLayout) -> Tensor:
        """(rows, dim): every visual row but marks, one gather for all visuals.

        It is linear and its weights add up to 1, so it stands in front of the projector's last affine map, which then
        meets as many rows as the language model and not as many as the encoder.
        """
        x = self.encode_batch(batch)
        if layout.cell_table is not None:
            x = gather_lerp(x.flatten(0, 2), layout.cell_table)
        body, gather = _split_off_gelu(self.projector.body)
        return self.projector.head(
            gather(body(x, *self.projector_instructions(batch)).flatten(0, -2), layout.token_table)
        )

    def _touch_unused_parameters(self, batch: Batch) -> Tensor:
        """A number made of what a batch may leave out: every mark, and views without a plan (`Batch.with_blank_view`).

        Times 0 it is part of every step, since processes that share a sharded model have to run and differentiate the
        same weights at the same time.
        """
        total = torch.zeros((), device=self.device)
        for learned_token in self.learned_tokens.values():
            total = total + learned_token.sum()
        if batch.num_views and not batch.plans:
            total = total + self.projector(self.encode_batch(batch), *self.projector_instructions(batch)).sum()
        return total

    # Images -------------------------------------------------------------------------------------------------------

    def encode_batch(self, batch: Batch) -> Tensor:
        """(images, rows, columns, dim): the encoder's features of all images, or those that came with the batch."""
        return self.encode_pixels(batch.pixels) if batch.features is None else batch.features

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 (images, 3, h, w) to the encoder's features (images, rows, columns, dim)."""
        return self._graphed_encoder(
            pixels if getattr(self.encoder, "takes_bytes", False) else self.normalise_pixels(pixels)
        )

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 (views, 3, h, w) to what the encoder was trained on: (x / 255 - mean) / std."""
        dtype = next(self.encoder.parameters()).dtype
        mean, std = (
            torch.tensor(values, device=pixels.device, dtype=torch.float32).view(3, 1, 1)
            for values in (self.encoder.pixel_mean, self.encoder.pixel_std)
        )
        return ((pixels.float() / 255 - mean) / std).to(dtype)

    def projector_instructions(self, batch: Batch) -> tuple[Instructions, ...]:
        """What the projector is given beside features: nothing, or the question about each view."""
        if not needs_text(self.projector):
            return ()
        if batch.instructions is None:
            raise DataError(
                "the projector reads the question, and this batch carries none; make batches of samples from "
                "Processor.of(model)."
            )
        return (batch.instructions,)

    @property
    def images(self) -> ImageReading:
        """How images are read that the model is shown."""
        return self.spec.images

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _split_off_gelu(body: nn.Module) -> tuple[nn.Module, Any]:
    """A projector's body without a GELU at its end, and the gather that does it on the way."""
    if type(body) is nn.Sequential and len(body) and _is_exact_gelu(body[-1]):
        return body[:-1], gelu_gather_lerp
    return body, gather_lerp


def _is_exact_gelu(module: nn.Module) -> bool:
    return isinstance(module, nn.GELU) and module.approximate == "none"
