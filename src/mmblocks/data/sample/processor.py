"""From a conversation to a sample: plans from headers, ids with exactly their placeholders, pixels per view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmblocks.batch import GatherLayout
from mmblocks.components import ChatTemplate, RewritingTemplate, has_capability
from mmblocks.conversation import Conversation, Item, PreferencePair, Visual
from mmblocks.data.media.visuals import read_visual_shape, render_visual_plan
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.continuations import encode_continuations
from mmblocks.data.sample.encode import Encoded, Overlong, Targets, TokenRuns, encode_prompt, make_training_runs
from mmblocks.data.sample.gather_layout import GatherLayoutBuilder
from mmblocks.data.sample.instructions import InstructionReader
from mmblocks.data.sample.visual_placement import VisualOrder, place_visuals
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.model.build import build_template
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.spec import ModelSpec
from mmblocks.registry import Spec
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import RoutedPlan, Size, VisualPlan, VisualShape
from mmblocks.tokenizers.router import Router

if TYPE_CHECKING:
    from mmblocks.data.video.video_reader import VideoReader


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded conversation and the uint8 pixels (unique views, 3, h, w) of its visuals, in order; `VisualPlan.unique_views`.

    instructions: for a projector that reads the question, its ids for each image.
    features: (unique views, rows, columns, dim) from a feature store; no pixels are read then, and `pixels` is empty.
    layout: how its visual rows are made, in integers; None without visuals, or where a plan does not lower.
    """

    encoded: Encoded
    pixels: Tensor
    instructions: tuple[Tensor, ...] | None = None
    features: Tensor | None = None
    layout: GatherLayout | None = None
    __repr__ = format_by_shape


class FeatureStore(Protocol):
    """Stored features of a frozen encoder (see `mmblocks.train.features`)."""

    def read(self, visuals: Sequence[Visual], plans: Sequence[RoutedPlan]) -> Tensor:
        """(unique views, rows, columns, dim): those of all unique views, in order. Raises `DataError` where some are missing."""
        ...


class ModelParts(Protocol):
    """What a processor is made from: a `OneVision`, or a composition on the meta device (`DryBuild`)."""

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
    visuals: VisualOrder = "as_written"
    seed: int = 0
    features: FeatureStore | None = None
    video_reader: VideoReader | None = None
    layouts: GatherLayoutBuilder | None = None
    images: ImageReading = DEFAULT_READING
    overlong: Overlong = "raise"

    @classmethod
    def from_model(
        cls,
        model: ModelParts,
        *,
        template: ChatTemplate | None = None,
        router: Router | None = None,
        max_tokens: int | None = None,
        visuals: VisualOrder = "as_written",
        seed: int = 0,
        video_reader: VideoReader | None = None,
        overlong: Overlong = "raise",
    ) -> Processor:
        """The processor of a model; a training stage may want another chat template, other visual tokenizers, a lower
        limit of tokens than the backbone's, or visuals in other places.

        seed: draws the conversations of visuals="mixed" whose visuals move (see `visual_placement`). video_reader: reads
        videos with a deadline and a memory bound; without it they are read in this process. overlong: what happens to
        training samples over the limit.
        """
        longest = model.backbone.max_tokens
        return cls(
            router=router or model.router,
            template=template or model.template,
            text_tokenizer=model.backbone.text_tokenizer,
            placeholder_id=model.backbone.placeholder_id,
            view_px=model.encoder.view_px,
            fill=compute_mean_colour(model.encoder.pixel_mean),
            max_tokens=longest if max_tokens is None else min(max_tokens, longest or max_tokens),
            instruction_reader=InstructionReader.from_projector(model.projector),
            visuals=visuals,
            seed=seed,
            video_reader=video_reader,
            layouts=GatherLayoutBuilder.from_model(model),
            images=model.images,
            overlong=overlong,
        )

    @classmethod
    def from_spec(
        cls,
        model: ModelSpec | Mapping[str, Any],
        *,
        template: Spec | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        visuals: VisualOrder = "as_written",
        seed: int = 0,
        video_reader: VideoReader | None = None,
        overlong: Overlong = "raise",
    ) -> Processor:
        """The processor of a composition that is not built: the model on the meta device, no weight read.

        The settings are those of a training stage; `tokenizer` replaces the visual tokenizers of some scenarios.
        Raises one `ConfigError` that lists every fault of the composition.
        """
        raw = model.to_dict() if isinstance(model, ModelSpec) else model
        changed = {**raw, "tokenizer": {**raw.get("tokenizer", {}), **tokenizer}} if tokenizer else raw
        seen = dry_build(changed, offline=False)
        seen.require_no_faults()
        own = None if template is None else build_template(template, seen.backbone)
        return cls.from_model(
            seen,
            template=own,
            max_tokens=max_tokens,
            visuals=visuals,
            seed=seed,
            video_reader=video_reader,
            overlong=overlong,
        )

    def plan(self, conversation: Conversation) -> tuple[RoutedPlan, ...]:
        """Where every visual token comes from, from file headers alone."""
        with name_errors(conversation.origin):
            return self.router.plan([self.read_shape(visual) for visual in conversation.visuals])

    def read_shape(self, visual: Visual) -> VisualShape:
        """What a plan is made from; see `media.visuals.read_visual_shape`."""
        return read_visual_shape(visual, self.video_reader, self.images)

    def make_training_sample(self, conversation: Conversation, targets: Targets = "answers") -> Sample:
        """A conversation with targets, its visuals decoded."""
        placed, runs = self._make_training_runs(conversation, targets)
        return self.make_sample(placed, runs.expand(self.placeholder_id))

    def make_training_samples(self, item: Item, targets: Targets = "answers") -> list[Sample]:
        """All samples of an item (see `list_conversations`), their visuals decoded."""
        return [self.make_training_sample(one, targets) for one in self.list_conversations(item)]

    def encode_item(self, item: Item, targets: Targets = "answers") -> list[Encoded]:
        """The same without decoding a pixel: what the samples will hold, from file headers alone."""
        return [runs.expand(self.placeholder_id) for runs in self.make_item_runs(item, targets)]

    def make_item_runs(self, item: Item, targets: Targets = "answers") -> list[TokenRuns]:
        """The same to be counted: no row is made for a visual token."""
        return [self._make_training_runs(one, targets)[1] for one in self.list_conversations(item)]

    def list_conversations(self, item: Item) -> tuple[Conversation, ...]:
        """What an item is learned from: a conversation, both of a pair (the preferred one first), and with a chat template
        that rewrites answers one conversation per answer (of a pair the last answers alone, in which the two differ).
        """
        both = (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item,)
        if not has_capability(self.template, RewritingTemplate):
            return both
        apart = tuple(split_answers(one) for one in both)
        return tuple(one[-1] for one in apart) if isinstance(item, PreferencePair) else apart[0]

    def _make_training_runs(self, conversation: Conversation, targets: Targets) -> tuple[Conversation, TokenRuns]:
        """The conversation with its visuals where this run places them, and its rows."""
        with name_errors(conversation.origin):
            conversation = place_visuals(conversation, self.visuals, self.seed)
            return conversation, make_training_runs(
                conversation,
                self.plan(conversation),
                template=self.template,
                text_tokenizer=self.text_tokenizer,
                max_tokens=self.max_tokens,
                targets=targets,
                overlong=self.overlong,
            )

    def make_prompt_sample(self, conversation: Conversation) -> Sample:
        """A conversation up to where the answer begins, its visuals decoded."""
        conversation = place_visuals(conversation, self.visuals, self.seed)
        return self.make_sample(conversation, self.encode_conversation_prompt(conversation))

    def encode_conversation_prompt(
        self, conversation: Conversation, shapes: Sequence[VisualShape] | None = None
    ) -> Encoded:
        """The same as it is written, without decoding a pixel; `shapes` are those of its visuals where they are known."""
        with name_errors(conversation.origin):
            plans = self.plan(conversation) if shapes is None else self.router.plan(shapes)
            return encode_prompt(
                conversation,
                plans,
                template=self.template,
                text_tokenizer=self.text_tokenizer,
                placeholder_id=self.placeholder_id,
                max_tokens=self.max_tokens,
            )

    def encode_continuations(
        self, conversation: Conversation, prompt: Encoded, continuations: Sequence[str]
    ) -> list[list[int]]:
        """The ids of possible answers to a conversation; see `mmblocks.data.sample.continuations`."""
        return encode_continuations(
            conversation,
            prompt,
            continuations,
            template=self.template,
            text_tokenizer=self.text_tokenizer,
            max_tokens=self.max_tokens,
        )

    def make_sample(self, conversation: Conversation, encoded: Encoded) -> Sample:
        """An encoded conversation with its visuals decoded."""
        plans, pixels, features = encoded.plans, torch.empty(0, 3, *self.view_px, dtype=torch.uint8), None
        with name_errors(conversation.origin):
            questions = self.instruction_reader and self.instruction_reader.read_questions(conversation, plans)
            if self.features is None:
                visuals = zip(conversation.visuals, plans, strict=True)
                rendered = [self.render_visual(visual, routed.plan) for visual, routed in visuals]
                pixels = rendered[0] if len(rendered) == 1 else torch.cat([pixels, *rendered])
            else:
                features = self.features.read(conversation.visuals, plans)
            layout = self.layouts and self.layouts.make_sample_layout(plans, encoded.visual_positions, self.router)
            return Sample(encoded, pixels, questions, features, layout)

    def render_visual(self, visual: Visual, plan: VisualPlan) -> Tensor:
        """uint8 (unique views, 3, h, w) of one visual; see `media.visuals.render_visual_plan`."""
        return render_visual_plan(visual, plan, self.fill, images=self.images, video_reader=self.video_reader)


def split_answers(conversation: Conversation) -> tuple[Conversation, ...]:
    """One conversation per learned answer, which ends with it and learns nothing else; the same where nothing is learned."""
    messages = conversation.messages
    ends = [i for i, message in enumerate(messages) if message.is_learned]
    given = tuple(replace(message, learn=False) for message in messages)
    return tuple(replace(conversation, messages=(*given[:i], messages[i])) for i in ends) or (conversation,)


def compute_mean_colour(pixel_mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The grey that a padded square is filled with: int(255 * mean) per channel, as expand2square does in LLaVA."""
    red, green, blue = (int(255 * m) for m in pixel_mean)
    return red, green, blue
