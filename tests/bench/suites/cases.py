"""What is asked of both sides: conversations about random images and videos, encoded for ours and laid out for the peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmblocks.batch import IGNORE, Batch
from mmblocks.conversation import Conversation, Visual
from mmblocks.data.media.pixels import render_views
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.model.onevision import OneVision
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import RoutedPlan, Size
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import Shown

QUESTION = " Which colour has the circle?"
ANSWER = "The circle is red, the square is blue."

Parts = Sequence[Any]
Told = Callable[[Shown, np.random.Generator], Parts]


def show_video(shown: Shown, rng: np.random.Generator) -> Parts:
    """A clip and a question."""
    return [rng.integers(0, 256, (shown.frames, *shown.view, 3), dtype=np.uint8), QUESTION]


def show_tiled(shown: Shown, rng: np.random.Generator) -> Parts:
    """One picture, cut into tiles, and a question."""
    return [_make_image(shown.picture, rng), QUESTION]


def show_base(shown: Shown, rng: np.random.Generator) -> Parts:
    """One picture no larger than a view."""
    return [_make_image(shown.view, rng), QUESTION]


def show_images(number: int | None) -> Told:
    """Several pictures of one view each, as many as the size shows where no number is given."""

    def told(shown: Shown, rng: np.random.Generator) -> Parts:
        return [*(_make_image(shown.one_of_several, rng) for _ in range(number or shown.several)), QUESTION]

    return told


def show_text(shown: Shown, rng: np.random.Generator) -> Parts:
    """Words alone."""
    return [QUESTION * 8]


SCENARIOS: Mapping[str, Told] = {
    "base": show_base,
    "anyres": show_tiled,
    "images": show_images(None),
    "two_images": show_images(2),
    "video": show_video,
    "text": show_text,
}


def _make_image(size: Size, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def make_conversation(parts: Parts, answer: str | None = None) -> Conversation:
    """A question of the user, and its answer where one is to be learned."""
    asked = [{"role": "user", "content": [_to_part(part) for part in parts]}]
    return Conversation.from_messages(asked + ([] if answer is None else [{"role": "assistant", "content": answer}]))


def _to_part(part: object) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "image" if isinstance(part, Image.Image) else "video"
    return {"type": kind, kind: part}


@dataclass(frozen=True, slots=True)
class Case:
    """One input set: `batch` for ours; for the peer, `padded` as its processor lays out several conversations, and
    `packed`, all of them in one row, told apart by their position ids.

    targets: of the padded rows, IGNORE where nothing is learned.
    """

    conversations: tuple[Conversation, ...]
    batch: Batch
    padded: dict[str, Any]
    targets: Tensor
    packed: dict[str, Any] = field(repr=False)
    __repr__ = format_by_shape

    def to(self, device: torch.device, dtype: torch.dtype) -> Case:
        """Everything where it is computed; the sizes of pictures stay on the host, where they are read."""
        padded, packed = (_move_inputs(inputs, device, dtype) for inputs in (self.padded, self.packed))
        return replace(self, batch=self.batch.to(device), padded=padded, packed=packed, targets=self.targets.to(device))


def make_cases(model: OneVision, run: Run, *scenarios: str, answers: bool = False) -> list[Case]:
    """Input sets of a batch with one conversation per scenario, `run.input_sets` of them, on the run's device."""
    made, shown = [], run.scale.shown
    if answers and run.scale.learned is not None:
        shown = run.scale.learned
    for seed in range(run.input_sets):
        rng = np.random.default_rng(seed)
        parts = [SCENARIOS[name](shown, rng) for name in scenarios]
        asked = [make_conversation(part, ANSWER if answers else None) for part in parts]
        made.append(make_case(model, asked, answers).to(run.device, run.dtype))
    return made


def make_case(model: OneVision, asked: Sequence[Conversation], answers: bool = False) -> Case:
    """A batch of these conversations for both sides, on the host."""
    processor = Processor.from_model(model)
    make = processor.make_training_sample if answers else processor.make_prompt_sample
    samples = [make(one) for one in asked]
    padded = _pad_inputs(model, processor, asked, samples)
    targets = pad_sequence([s.encoded.targets for s in samples], batch_first=True, padding_value=IGNORE)
    return Case(tuple(asked), collate(samples), padded, targets, _pack_inputs(padded, samples))


# As transformers' processor lays it out -------------------------------------------------------------------------------


def _pad_inputs(
    model: OneVision, processor: Processor, asked: Sequence[Conversation], samples: Sequence[Sample]
) -> dict[str, Any]:
    ids = [_map_ids(model, sample) for sample in samples]
    rows = pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(row) for row in ids])
    inputs: dict[str, Any] = {
        "input_ids": rows,
        "attention_mask": (torch.arange(rows.shape[1]) < lengths[:, None]).long(),
    }
    shown = [
        (visual, routed, len(sample.encoded.plans))
        for one, sample in zip(asked, samples, strict=True)
        for visual, routed in zip(one.visuals, sample.encoded.plans, strict=True)
    ]
    stills = [(v, r) for v, r, _ in shown if v.kind == "image"]
    if stills:
        tiles = [_normalise_pixels(model, _render_views(v, r, processor)) for v, r in stills]
        inputs["pixel_values"] = pad_sequence(tiles, batch_first=True)
        inputs["image_sizes"] = torch.tensor([[v.source.height, v.source.width] for v, _ in stills])
        counts = [sum(v.kind == "image" for v in one.visuals) for one in asked]
        inputs["batch_num_images"] = torch.tensor([count for count in counts if count])
    clips = [_normalise_pixels(model, _render_views(v, r, processor)) for v, r, _ in shown if v.kind == "video"]
    if clips:
        inputs["pixel_values_videos"] = torch.stack(clips)
    return inputs


def _pack_inputs(padded: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """The same in one row, without a mask: transformers reads from restarting positions where sequences begin."""
    real = padded["attention_mask"].bool()
    visuals = {name: value for name, value in padded.items() if name not in ("input_ids", "attention_mask")}
    positions = torch.cat([torch.arange(len(sample.encoded)) for sample in samples])
    return {**visuals, "input_ids": padded["input_ids"][real][None], "position_ids": positions[None]}


def map_visual_ids(model: OneVision) -> dict[str, int]:
    """The peer's ids of <image> and <video>."""
    found = model.backbone.text_tokenizer.convert_tokens_to_ids
    return {kind: found(f"<{kind}>") for kind in ("image", "video")}


def _map_ids(model: OneVision, sample: Sample) -> Tensor:
    """Our ids with <image> or <video> wherever a visual token stands."""
    ids, at = sample.encoded.input_ids.clone(), 0
    numbers = map_visual_ids(model)
    for routed in sample.encoded.plans:
        rows = sample.encoded.visual_positions[at : at + routed.plan.num_tokens]
        ids[rows] = numbers["video" if routed.scenario == "video" else "image"]
        at += len(rows)
    return ids


def _render_views(visual: Visual, routed: RoutedPlan, processor: Processor) -> Tensor:
    """Every view of a plan, repeated ones repeated, as a processor without our plans makes them."""
    stills = [visual.source] if visual.kind == "image" else [Image.fromarray(frame) for frame in visual.source]
    return torch.cat([render_views(stills[view.frame], [view], processor.fill) for view in routed.plan.views])


def _normalise_pixels(model: OneVision, pixels: Tensor) -> Tensor:
    """float32 (views, 3, h, w): (x / 255 - mean) / std."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.encoder.pixel_mean, model.encoder.pixel_std))
    return (pixels.float() / 255 - mean) / std


def _move_inputs(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    on_host = ("image_sizes", "batch_num_images")
    return {
        name: value if name in on_host else value.to(device, dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
