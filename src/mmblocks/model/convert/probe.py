"""The same tokens and pixels through two models: how far apart their logits are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmblocks.batch import IGNORE, Batch, Instructions, Packing
from mmblocks.components import InstructedProjector, has_capability
from mmblocks.errors import CheckpointError
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import read_model, read_processor
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import RoutedPlan, Size, VisualPlan, VisualShape

TOLERANCE = 1e-4
"""fp32: kernels of two code paths sum in different orders; an error of structure shows at 1e-2 and above."""
TILED_FAMILIES = ("llava_next", "llava_next_video", "llava_onevision")
"""Families of transformers that are given all views of an image, and its size."""
QFORMER_FAMILIES = ("blip-2", "instructblip")
"""Families of transformers whose Q-Former makes an image's tokens."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One conversation, as rows: text ids, and visuals of random pixels in their places."""

    shapes: tuple[VisualShape, ...]
    plans: tuple[RoutedPlan, ...]
    pixels: Tensor
    rows: tuple[int | None, ...]
    """A text id, or None where a visual token stands; visuals are separated by text."""
    instructions: Instructions | None = None
    """Words about each view, for a projector that reads them."""
    __repr__ = format_by_shape

    def select_rows(self, most: int = 256) -> Tensor:
        """Numbers of the rows whose logits are compared: all, or as many as are said, spread to the last, which sees
        every other.
        """
        return torch.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).round().long()


def make_probes(model: OneVision, seed: int = 0, *, videos: bool = True) -> list[Probe]:
    """A wide image, two images, a video of three frames (where `videos` can be shown), and text alone."""
    view = model.encoder.view_px
    wide = VisualShape("image", Size(view.height, 2 * view.width + 3))
    square = VisualShape("image", Size(view.height, view.width))
    video = VisualShape("video", Size(view.height, view.width), num_frames=3)
    generator = torch.Generator().manual_seed(seed)
    shown = [(wide,), (square, wide), (video,), ()] if videos else [(wide,), (square, wide), ()]
    return [_make_probe(model, shapes, generator) for shapes in shown]


def _make_probe(model: OneVision, shapes: tuple[VisualShape, ...], generator: torch.Generator) -> Probe:
    plans = model.router.plan(shapes)
    views = sum(len(routed.plan.views) for routed in plans)
    pixels = torch.randint(0, 256, (views, 3, *model.encoder.view_px), generator=generator, dtype=torch.uint8)
    rows = [*_draw_text_ids(model, generator)]
    for routed in plans:
        rows += [*_shown(model, routed.plan, generator), *_draw_text_ids(model, generator)]
    return Probe(shapes, plans, pixels, tuple(rows), _asked(model, views, generator))


def _asked(model: OneVision, views: int, generator: torch.Generator) -> Instructions | None:
    if not has_capability(model.projector, InstructedProjector):
        return None
    ids = torch.randint(1, model.projector.vocab_size, (views, 4), generator=generator)
    return Instructions(ids, torch.ones_like(ids, dtype=torch.bool))


def _shown(model: OneVision, plan: VisualPlan, generator: torch.Generator) -> Iterator[int | None]:
    """The rows of a visual; what its plan tells between them may be any text here."""
    for piece in plan.split_into_pieces():
        yield from _draw_text_ids(model, generator) if isinstance(piece, str) else [None] * piece


def _draw_text_ids(model: OneVision, generator: torch.Generator) -> list[int]:
    """Five random ids of plain text, never one that stands for visuals here or in transformers."""
    tokenizer_source = model.backbone.tokenizer_source
    special = set(model.backbone.text_tokenizer.get_added_vocab().values()) if tokenizer_source else set()
    placeholder = model.backbone.placeholder_id
    special |= {placeholder - 1, placeholder, placeholder + 1}  # <video> is a neighbour of <image>
    ids = torch.randperm(model.backbone.vocab_size, generator=generator).tolist()
    return [token for token in ids if token not in special][:5]


@torch.no_grad()
def compute_our_logits(model: OneVision, probe: Probe, rows: Tensor | None = None) -> Tensor:
    """(rows, vocabulary) from a model of ours: all of a probe, or those of these numbers."""
    ids = torch.tensor([model.backbone.placeholder_id if row is None else row for row in probe.rows])
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(len(ids)),
        targets=torch.full_like(ids, IGNORE),
        packing=Packing.from_lengths([len(ids)]),
        pixels=probe.pixels,
        plans=probe.plans,
        visual_positions=torch.tensor([i for i, row in enumerate(probe.rows) if row is None], dtype=torch.int64),
        instructions=probe.instructions,
    )
    hidden = model.eval().compute_hidden_states(batch)
    return model.backbone.compute_logits(hidden if rows is None else hidden[rows])


def load_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A checkpoint in transformers' own class. Raises `CheckpointError` where keys differ."""
    from transformers import AutoModelForImageTextToText

    theirs, report = read_model(AutoModelForImageTextToText, folder, dtype=dtype, output_loading_info=True)
    troubles = ("missing_keys", "unexpected_keys", "mismatched_keys")
    if faults := [f"{name}: {', '.join(sorted(map(str, report[name])))}" for name in troubles if report.get(name)]:
        raise CheckpointError(f"transformers does not load {folder} whole.\n  " + "\n  ".join(faults))
    return theirs.eval()


def load_processor(folder: Path) -> Any:
    """A checkpoint's own processor. Raises `CheckpointError` where there is none."""
    return read_processor(folder)


@torch.no_grad()
def compute_transformers_logits(theirs: Any, model: OneVision, probe: Probe, rows: Tensor | None = None) -> Tensor:
    """(rows, vocabulary) from transformers' model, given the pixels of `model`'s plans: all, or those of these numbers."""
    token = theirs.config.video_token_id if _has_video(probe) else theirs.config.image_token_id
    ids = torch.tensor([[token if row is None else row for row in probe.rows]])
    inputs = {"input_ids": ids, **_make_pixel_inputs(theirs.config.model_type, model, probe)}
    if rows is None:
        return theirs(**inputs).logits[0]
    if "logits_to_keep" in signature(theirs.forward).parameters:
        return theirs(**inputs, logits_to_keep=rows).logits[0]
    return theirs(**inputs).logits[0, rows]


def _has_video(probe: Probe) -> bool:
    return any(shape.kind == "video" for shape in probe.shapes)


def _make_pixel_inputs(model_type: str, model: OneVision, probe: Probe) -> dict[str, Tensor]:
    """The visuals of a probe as transformers' processors name and shape them."""
    if model_type in QFORMER_FAMILIES:
        return _make_qformer_inputs(model, probe)
    if not probe.shapes:
        return {}
    pixels = model.normalise_pixels(probe.pixels).float()
    if _has_video(probe):
        return {"pixel_values_videos": pixels[None]}
    if model_type not in TILED_FAMILIES:
        return {"pixel_values": pixels}
    views = pixels.split([len(routed.plan.views) for routed in probe.plans])
    tiled = {
        "pixel_values": pad_sequence(list(views), batch_first=True),
        "image_sizes": torch.tensor([list(shape.size) for shape in probe.shapes]),
    }
    return tiled | ({"batch_num_images": torch.tensor([len(views)])} if model_type == "llava_onevision" else {})


def _make_qformer_inputs(model: OneVision, probe: Probe) -> dict[str, Tensor]:
    """BLIP-2 always asks for an image; one of which no token is placed changes nothing."""
    pixels, asked = model.normalise_pixels(probe.pixels).float(), probe.instructions
    pixels = pixels if len(pixels) else torch.zeros(1, *pixels.shape[1:])
    if not has_capability(model.projector, InstructedProjector):
        return {"pixel_values": pixels}
    ids = asked.ids if asked is not None and len(asked.ids) else torch.ones(1, 1, dtype=torch.int64)
    return {"pixel_values": pixels, "qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
