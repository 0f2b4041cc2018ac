"""From a conversation to a sample: plans from headers, ids with exactly their placeholders, pixels per view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmblocks.batch import Layout
from mmblocks.components import ChatTemplate
from mmblocks.conversation import Conversation, Item, Pair, Visual
from mmblocks.data.media.visuals import pixels_of, shape_of
from mmblocks.data.record_faults import naming
from mmblocks.data.sample.encode import Encoded, Overlong, Targets, encode_for_training, encode_prompt
from mmblocks.data.sample.instructions import InstructionReader
from mmblocks.data.sample.layout import Layouts
from mmblocks.data.sample.positions import Visuals, arranged
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.model.build import wire_template
from mmblocks.model.checks.composition import examine
from mmblocks.model.spec import ModelSpec
from mmblocks.registry import Spec
from mmblocks.reprs import repr_by_shape
from mmblocks.shapes import RoutedPlan, Size, VisualPlan, VisualShape
from mmblocks.tokenizers.router import Router

if TYPE_CHECKING:
    from mmblocks.data.video.guarded import ClipReader


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded conversation and the uint8 pixels (pictures, 3, h, w) of its visuals, in order; `VisualPlan.pictures`.

    instructions: for a projector that reads the question, its ids for each picture.
    features: (pictures, rows, columns, dim) where the encoder's work was kept; no pixels are read then, and there are none.
    layout: how its visual rows are made, in integers; None without visuals, or where a tokenizer cannot say.
    """

    encoded: Encoded
    pixels: Tensor
    instructions: tuple[Tensor, ...] | None = None
    features: Tensor | None = None
    layout: Layout | None = None
    __repr__ = repr_by_shape


class Features(Protocol):
    """Features of a frozen encoder that were kept (see `mmblocks.train.features`)."""

    def read(self, visuals: Sequence[Visual], plans: Sequence[RoutedPlan]) -> Tensor:
        """(pictures, rows, columns, dim): those of all pictures, in order. Raises `DataError` where some are missing."""
        ...


class Parts(Protocol):
    """What a processor is made from: a `OneVision`, or a composition on the meta device (`Examination`)."""

    @property
    def encoder(self) -> Any: ...
    @property
    def projector(self) -> Any: ...
    @property
    def backbone(self) -> Any: ...
    @property
    def template(self) -> Any: ...
    @property
    def router(self) -> Router: ...
    @property
    def images(self) -> ImageReading: ...


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
    features: Features | None = None
    clips: ClipReader | None = None
    layouts: Layouts | None = None
    images: ImageReading = DEFAULT_READING
    overlong: Overlong = "raise"

    @classmethod
    def of(
        cls,
        model: Parts,
        *,
        template: ChatTemplate | None = None,
        router: Router | None = None,
        max_tokens: int | None = None,
        visuals: Visuals = "as_written",
        seed: int = 0,
        clips: ClipReader | None = None,
        overlong: Overlong = "raise",
    ) -> Processor:
        """The processor of a model; a training stage may want another chat template, other visual tokenizers, a lower
        limit of tokens than the backbone's, or visuals in other places.

        `seed` draws the conversations of visuals="mixed" whose visuals move (see `positions.arranged`).
        `clips` reads clips with a deadline and a memory bound; without it they are read in the asking process.
        `overlong` says what becomes of training samples over the limit.
        """
        longest = model.backbone.max_tokens
        return cls(
            router=router or model.router,
            template=template or model.template,
            text_tokenizer=model.backbone.text_tokenizer,
            placeholder_id=model.backbone.placeholder_id,
            view_px=model.encoder.view_px,
            fill=mean_colour(model.encoder.pixel_mean),
            max_tokens=longest if max_tokens is None else min(max_tokens, longest or max_tokens),
            instruction_reader=InstructionReader.of(model.projector),
            visuals=visuals,
            seed=seed,
            clips=clips,
            layouts=Layouts.of(model),
            images=model.images,
            overlong=overlong,
        )

    @classmethod
    def planning(
        cls,
        model: ModelSpec | Mapping[str, Any],
        *,
        template: Spec | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        visuals: Visuals = "as_written",
        seed: int = 0,
        clips: ClipReader | None = None,
        overlong: Overlong = "raise",
    ) -> Processor:
        """The processor of a composition that is not built: the model on the meta device, no weight read.

        The settings are those of a training stage; `tokenizer` replaces the visual tokenizers of some scenarios.
        Raises one `ConfigError` that lists every fault of the composition.
        """
        raw = model.plain() if isinstance(model, ModelSpec) else model
        changed = {**raw, "tokenizer": {**raw.get("tokenizer", {}), **tokenizer}} if tokenizer else raw
        seen = examine(changed, offline=False)
        seen.require()
        own = None if template is None else wire_template(template, seen.backbone)
        return cls.of(
            seen, template=own, max_tokens=max_tokens, visuals=visuals, seed=seed, clips=clips, overlong=overlong
        )

    def plan(self, conversation: Conversation) -> tuple[RoutedPlan, ...]:
        """Where every visual token comes from, from file headers alone."""
        with naming(conversation.origin):
            return self.router.plan([self.shape_of(visual) for visual in conversation.visuals])

    def shape_of(self, visual: Visual) -> VisualShape:
        """What a plan is made from; see `media.shape_of`."""
        return shape_of(visual, self.clips, self.images)

    def training_sample(self, conversation: Conversation, targets: Targets = "answers") -> Sample:
        """A conversation with targets, its visuals decoded."""
        return self.opened(*self._planned(conversation, targets))

    def training_samples(self, item: Item, targets: Targets = "answers") -> list[Sample]:
        """All samples of an item (see `conversations`), their visuals decoded."""
        return [self.training_sample(one, targets) for one in self.conversations(item)]

    def encoded(self, item: Item, targets: Targets = "answers") -> list[Encoded]:
        """The same without decoding a pixel: what the samples will hold, from file headers alone."""
        return [self._planned(one, targets)[1] for one in self.conversations(item)]

    def conversations(self, item: Item) -> tuple[Conversation, ...]:
        """What an item is learned from: a conversation, both of a pair (the preferred one first), and with a chat template
        that rewrites answers one conversation per answer (of a pair the last answers alone, which tell its two apart).
        """
        both = (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)
        if not getattr(self.template, "rewrites_answers", False):
            return both
        apart = tuple(answer_by_answer(one) for one in both)
        return tuple(one[-1] for one in apart) if isinstance(item, Pair) else apart[0]

    def _planned(self, conversation: Conversation, targets: Targets) -> tuple[Conversation, Encoded]:
        with naming(conversation.origin):
            conversation = arranged(conversation, self.visuals, self.seed)
            plans = self.plan(conversation)
            made = encode_for_training(conversation, plans, targets=targets, overlong=self.overlong, **self._encoding())
            return conversation, made

    def prompt(self, conversation: Conversation) -> Sample:
        """A conversation up to where the answer begins, its visuals decoded."""
        conversation = arranged(conversation, self.visuals, self.seed)
        return self.opened(conversation, self.encoded_prompt(conversation))

    def encoded_prompt(self, conversation: Conversation, shapes: Sequence[VisualShape] | None = None) -> Encoded:
        """The same as it is written, without decoding a pixel; `shapes` are those of its visuals where they are known."""
        with naming(conversation.origin):
            plans = self.plan(conversation) if shapes is None else self.router.plan(shapes)
            return encode_prompt(conversation, plans, **self._encoding())

    def opened(self, conversation: Conversation, encoded: Encoded) -> Sample:
        """A conversation that is encoded, its visuals decoded."""
        reader = self.instruction_reader
        with naming(conversation.origin):
            asked = None if reader is None else reader.read(conversation, encoded.plans)
            pixels, features = self._pixels(conversation, encoded), self._features(conversation, encoded)
            return Sample(encoded, pixels, asked, features, self._layout(encoded))

    def _layout(self, encoded: Encoded) -> Layout | None:
        if self.layouts is None:
            return None
        return self.layouts.of_sample(encoded.plans, encoded.visual_positions, self.router)

    def _features(self, conversation: Conversation, encoded: Encoded) -> Tensor | None:
        if self.features is None:
            return None
        return self.features.read(conversation.visuals, encoded.plans)

    def _encoding(self) -> dict[str, Any]:
        return {
            "template": self.template,
            "text_tokenizer": self.text_tokenizer,
            "placeholder_id": self.placeholder_id,
            "max_tokens": self.max_tokens,
        }

    def _pixels(self, conversation: Conversation, encoded: Encoded) -> Tensor:
        none = torch.empty(0, 3, *self.view_px, dtype=torch.uint8)
        if self.features is not None:
            return none
        pairs = zip(conversation.visuals, encoded.plans, strict=True)
        pictures = [self.pixels_of(visual, routed.plan) for visual, routed in pairs]
        return torch.cat([none, *pictures])

    def pixels_of(self, visual: Visual, plan: VisualPlan) -> Tensor:
        """uint8 (pictures, 3, h, w) of one visual; see `media.pixels_of`."""
        return pixels_of(visual, plan, self.fill, images=self.images, clips=self.clips)


def answer_by_answer(conversation: Conversation) -> tuple[Conversation, ...]:
    """One conversation per learned answer, which ends with it and learns nothing else; the same where nothing is learned."""
    messages = conversation.messages
    ends = [i for i, message in enumerate(messages) if message.is_learned]
    given = tuple(replace(message, learn=False) for message in messages)
    return tuple(replace(conversation, messages=(*given[:i], messages[i])) for i in ends) or (conversation,)


def mean_colour(pixel_mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The grey that a padded square is filled with: int(255 * mean) per channel, as expand2square does in LLaVA."""
    red, green, blue = (int(255 * m) for m in pixel_mean)
    return red, green, blue
