"""The model: an encoder, a projector, visual tokenizers, learned tokens and a language model, in one direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.batch import Batch, GatherLayout, Instructions, RowIndex
from mmblocks.components import (
    Backbone,
    ByteEncoder,
    ChatTemplate,
    InstructedProjector,
    Projector,
    VisionEncoder,
    has_capability,
)
from mmblocks.encoders.patches import make_channels
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
class LossOutput:
    """A loss as a sum and the number of its terms, so that batches and processes can be averaged exactly.

    Terms are tokens with a target, or whatever an objective counts. metrics: further sums over the same terms, without
    gradients.
    """

    total: Tensor
    num_terms: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    __repr__ = format_by_shape

    @property
    def loss(self) -> Tensor:
        """The mean over all terms."""
        return self.total / max(self.num_terms, 1)


class OneVision(nn.Module):
    """LLaVA-OneVision (https://arxiv.org/abs/2408.03326): one image, several images and videos in one model.

    It takes built components; `mmblocks.build` makes them from names. Batches are packed: sequences stand end to end in one
    row of tokens, without padding. `learned_tokens` are those that the visual tokenizers insert (such as LLaVA's
    image_newline), each of the backbone's width.
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
        self.origin = ""
        """`org/name@commit` of the checkpoint of the hub that the weights come from; empty for others."""
        self._graphed_encoder = CUDAGraphed(self.encoder)
        scale = backbone.dim**-0.5  # as LLaVA-NeXT draws image_newline
        self.learned_tokens = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(backbone.dim) * scale) for name in router.learned_tokens}
        )

    def train(self, mode: bool = True) -> OneVision:
        """Training mode for what is trained (see `modes`); frozen modules stay in evaluation mode."""
        super().train(mode)
        keep_frozen_in_evaluation(self)
        return self

    # Losses and logits ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossOutput:
        """Next-token cross entropy over the tokens that have a target. Only these meet the language model's head."""
        rows = batch.target_rows
        hidden_states, targets = self.compute_hidden_states(batch, rows), batch.targets[rows.index]
        return LossOutput(linear_cross_entropy(hidden_states, targets, **self._head_arguments), len(rows))

    def compute_row_losses(self, batch: Batch) -> Tensor:
        """(tokens with a target,) float32: the cross entropy of each, in their order."""
        rows = batch.target_rows
        hidden_states, targets = self.compute_hidden_states(batch, rows), batch.targets[rows.index]
        return row_cross_entropies(hidden_states, targets, **self._head_arguments)

    def compute_row_hits(self, batch: Batch) -> Tensor:
        """(tokens with a target,) bool: whether the target is the most likely token."""
        rows = batch.target_rows
        logits = self.backbone.compute_logits(self.compute_hidden_states(batch, rows))
        return logits.argmax(-1) == batch.targets[rows.index]

    def compute_logits(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary)."""
        return self.backbone.compute_logits(self.compute_hidden_states(batch))

    def compute_hidden_states(self, batch: Batch, rows: RowIndex | None = None) -> Tensor:
        """(tokens, dim), or (rows, dim) of these rows only: the backbone's last hidden states."""
        return self.backbone.compute_hidden_states(self.embed_tokens(batch), batch.position_ids, batch.packing, rows)

    @property
    def _head_arguments(self) -> dict[str, Any]:
        return {"logits": self.backbone.compute_logits, "vocabulary": self.backbone.vocab_size}

    # Input embeddings -----------------------------------------------------------------------------------------------

    def embed_tokens(self, batch: Batch) -> Tensor:
        """(tokens, dim): text embeddings, with visual tokens at their positions."""
        embeddings = self.backbone.embed_tokens(batch.input_ids)
        if batch.plans:
            embeddings = self._insert_visual_tokens(embeddings, batch)
        if torch.is_grad_enabled() and batch.layout is None:
            embeddings[:1] += 0 * self._touch_unused_parameters(batch).to(embeddings.dtype)
        return embeddings

    def compute_visual_tokens(self, batch: Batch) -> Tensor:
        """(visual tokens, dim): the tokens of all images and videos of the batch, in order."""
        embeddings = self.backbone.embed_tokens(batch.input_ids)
        return self._insert_visual_tokens(embeddings, batch)[batch.visual_positions]

    def _insert_visual_tokens(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """The embeddings (tokens, dim) with visual tokens written into them, in place."""
        layout = batch.layout
        if layout is None:
            features, instructions = self.encode_batch(batch), self.make_projector_arguments(batch)
            visual_tokens = assemble_visual_tokens(
                batch, features, instructions, self.projector, self.router, dict(self.learned_tokens.items())
            )
            return embeddings.index_copy_(0, batch.visual_positions, visual_tokens.to(embeddings.dtype))
        embeddings.index_copy_(0, layout.positions, self._gather_visual_tokens(batch, layout).to(embeddings.dtype))
        if self.learned_tokens:
            # All of them, used or not: the processes of a sharded model differentiate the same weights. Those of the router
            # come first, as `learned_token_ids` number them, then those that only other stages use.
            names = dict.fromkeys([*self.router.learned_tokens, *self.learned_tokens])
            weights = torch.stack([self.learned_tokens[name] for name in names])
            inserted = weights.index_select(0, layout.learned_token_ids)
            embeddings.index_copy_(0, layout.learned_token_positions, inserted.to(embeddings.dtype))
        return embeddings

    def _gather_visual_tokens(self, batch: Batch, layout: GatherLayout) -> Tensor:
        """(visual tokens without learned ones, dim): pooling, unpadding and row order as one gather for the whole batch.

        The gather is linear and its weights sum to 1, so it stands in front of the projector's last linear layer (its
        `head`), which then computes as many rows as the language model reads, not as many as the encoder gives.
        """
        features = self.encode_batch(batch)
        if layout.cell_table is not None:
            features = gather_lerp(features.flatten(0, 2), layout.cell_table)
        body, gather = self.projector.body, gather_lerp
        if (
            type(body) is nn.Sequential
            and len(body)
            and isinstance(body[-1], nn.GELU)
            and body[-1].approximate == "none"
        ):
            body, gather = body[:-1], gelu_gather_lerp
        projected = body(features, *self.make_projector_arguments(batch))
        return self.projector.head(gather(projected.flatten(0, -2), layout.token_table))

    def _touch_unused_parameters(self, batch: Batch) -> Tensor:
        """A number computed from parameters that a batch may not use: learned tokens, and encoder and projector without images.

        Times 0 it is part of every step, because the processes of a sharded model must run and differentiate the same
        weights at the same time. `Batch.with_blank_view` has given a batch without images a blank one.
        """
        total = torch.zeros((), device=self.device)
        for learned_token in self.learned_tokens.values():
            total = total + learned_token.sum()
        if batch.num_views and not batch.plans:
            total = total + self.projector(self.encode_batch(batch), *self.make_projector_arguments(batch)).sum()
        return total

    # Views --------------------------------------------------------------------------------------------------------

    def encode_batch(self, batch: Batch) -> Tensor:
        """(unique views, rows, columns, encoder dim): features of all unique views of the batch, or the cached ones it carries."""
        return self.encode_pixels(batch.pixels) if batch.features is None else batch.features

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 (views, 3, h, w) to the encoder's features (views, rows, columns, encoder dim)."""
        takes_bytes = has_capability(self.encoder, ByteEncoder)
        return self._graphed_encoder(pixels if takes_bytes else self.normalise_pixels(pixels))

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 (views, 3, h, w) to the encoder's input: (x / 255 - mean) / std."""
        dtype = next(self.encoder.parameters()).dtype
        mean, std = (
            make_channels(values, pixels.device) for values in (self.encoder.pixel_mean, self.encoder.pixel_std)
        )
        return ((pixels.float() / 255 - mean) / std).to(dtype)

    def make_projector_arguments(self, batch: Batch) -> tuple[Instructions, ...]:
        """The projector's arguments beside features: none, or the question about each view (`InstructedProjector`)."""
        if not has_capability(self.projector, InstructedProjector):
            return ()
        if batch.instructions is None:
            raise DataError(
                "the projector reads the question, and this batch carries none; make its samples with "
                "Processor.from_model(model)."
            )
        return (batch.instructions,)

    @property
    def images(self) -> ImageReading:
        """The settings by which image files are read."""
        return self.spec.images

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
