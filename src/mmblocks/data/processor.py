"""From a conversation to a sample: plans from headers, ids with exactly their placeholders, pixels per view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.components import ChatTemplate
from mmblocks.conversation import Conversation
from mmblocks.data.encode import Encoded, Targets, encode_for_training, encode_prompt
from mmblocks.data.instructions import InstructionReader
from mmblocks.data.media import pixels_of, shape_of
from mmblocks.data.positions import Visuals, arranged
from mmblocks.errors import DataError, MMBlocksError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan, Size
from mmblocks.tokenizers.router import Router


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded conversation and the uint8 pixels (views, 3, h, w) of its visuals, in order.

    instructions: for a projector that reads the question, its ids for each view.
    """

    encoded: Encoded
    pixels: Tensor
    instructions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class Processor:
    """What the data side needs to know of a model. It holds no weights, so data workers can carry it."""

    router: Router
    template: ChatTemplate
    text_tokenizer: Any
    placeholder_id: int
    view_px: Size
    fill: tuple[int, int, int]
    max_tokens: int | None
    instruction_reader: InstructionReader | None = None
    visuals: Visuals = "as_written"
    seed: int = 0

    @classmethod
    def of(
        cls,
        model: OneVision,
        *,
        template: ChatTemplate | None = None,
        visuals: Visuals = "as_written",
        seed: int = 0,
    ) -> Processor:
        """The processor of a model; a training stage may want another chat template, or visuals in other places.

        `seed` draws the conversations of visuals="mixed" whose visuals move (see `positions.arranged`).
        """
        return cls(
            router=model.router,
            template=template or model.template,
            text_tokenizer=model.backbone.text_tokenizer,
            placeholder_id=model.backbone.placeholder_id,
            view_px=model.encoder.view_px,
            fill=mean_colour(model.encoder.pixel_mean),
            max_tokens=model.backbone.max_tokens,
            instruction_reader=InstructionReader.of(model.projector),
            visuals=visuals,
            seed=seed,
        )

    def plan(self, conversation: Conversation) -> tuple[RoutedPlan, ...]:
        """Where every visual token comes from, from file headers alone."""
        try:
            return self.router.plan([shape_of(visual) for visual in conversation.visuals])
        except DataError as fault:
            raise DataError(f"{conversation.origin}: {fault}") from fault

    def training_sample(self, conversation: Conversation, targets: Targets = "answers") -> Sample:
        """A conversation with targets, its visuals decoded."""
        conversation = arranged(conversation, self.visuals, self.seed)
        encoded = encode_for_training(conversation, self.plan(conversation), targets=targets, **self._encoding())
        return self._sample(conversation, encoded)

    def prompt(self, conversation: Conversation) -> Sample:
        """A conversation up to where the answer begins, its visuals decoded."""
        conversation = arranged(conversation, self.visuals, self.seed)
        encoded = encode_prompt(conversation, self.plan(conversation), **self._encoding())
        return self._sample(conversation, encoded)

    def _sample(self, conversation: Conversation, encoded: Encoded) -> Sample:
        reader = self.instruction_reader
        asked = None if reader is None else reader.read(conversation, encoded.plans)
        return Sample(encoded, self._pixels(conversation, encoded), asked)

    def _encoding(self) -> dict[str, Any]:
        return {
            "template": self.template,
            "text_tokenizer": self.text_tokenizer,
            "placeholder_id": self.placeholder_id,
            "max_tokens": self.max_tokens,
        }

    def _pixels(self, conversation: Conversation, encoded: Encoded) -> Tensor:
        none = torch.empty(0, 3, *self.view_px, dtype=torch.uint8)
        try:
            pairs = zip(conversation.visuals, encoded.plans, strict=True)
            return torch.cat([none, *(pixels_of(visual, routed.plan, self.fill) for visual, routed in pairs)])
        except MMBlocksError as fault:
            raise DataError(f"{conversation.origin}: {fault}") from fault


def mean_colour(pixel_mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The grey that a padded square is filled with: int(255 * mean) per channel, as expand2square does in LLaVA."""
    red, green, blue = (int(255 * m) for m in pixel_mean)
    return red, green, blue
