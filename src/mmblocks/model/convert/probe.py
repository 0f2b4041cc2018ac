"""Random conversations that are run through two models to compare their logits."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmblocks.batch import IGNORE, Batch, Instructions, Packing
from mmblocks.components import needs_text
from mmblocks.errors import CheckpointError
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import list_loading_faults, read_model
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import RoutedPlan, Size, VisualShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""fp32: kernels of two code paths sum in different orders; an error of structure shows at 1e-2 and above."""
TILED_FAMILIES = ("llava_next", "llava_next_video", "llava_onevision")
"""Families of transformers that take all views of an image, and its size."""
QFORMER_FAMILIES = ("blip-2", "instructblip")
"""Families of transformers whose Q-Former makes an image's tokens."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One conversation as rows of text ids and visual tokens, with random pixels."""

    shapes: tuple[VisualShape, ...]
    plans: tuple[RoutedPlan, ...]
    pixels: Tensor
    rows: tuple[int | None, ...]
    """A text id, or None where a visual token stands; visuals are separated by text."""
    instructions: Instructions | None = None
    """A text for each view, for a projector that reads the question."""
    __repr__ = format_by_shape

    def select_rows(self, most: int = 256) -> Tensor:
        """Numbers of the rows whose logits are compared: all, or `most`, evenly spread up to the last one."""
        return torch.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).round().long()


def make_probes(model: OneVision, seed: int = 0, *, videos: bool = True) -> list[Probe]:
    """Probes with a wide image, two images, a video of three frames (with `videos`), and text alone."""
    view = model.encoder.view_px
    wide = VisualShape("image", Size(view.height, 2 * view.width + 3))
    square = VisualShape("image", Size(view.height, view.width))
    video = VisualShape("video", Size(view.height, view.width), num_frames=3)
    generator = torch.Generator().manual_seed(seed)
    visuals = [(wide,), (square, wide), (video,), ()] if videos else [(wide,), (square, wide), ()]
    return [_make_probe(model, shapes, generator) for shapes in visuals]


def _make_probe(model: OneVision, shapes: tuple[VisualShape, ...], generator: torch.Generator) -> Probe:
    plans = model.router.plan(shapes)
    views = sum(len(routed.plan.views) for routed in plans)
    pixels = torch.randint(0, 256, (views, 3, *model.encoder.view_px), generator=generator, dtype=torch.uint8)
    rows: list[int | None] = [*_draw_text_ids(model, generator)]
    for routed in plans:
        for piece in routed.plan.split_into_pieces():  # inline text of a plan may be any text here
            rows += _draw_text_ids(model, generator) if isinstance(piece, str) else [None] * piece
        rows += _draw_text_ids(model, generator)
    instructions = None
    if needs_text(model.projector):
        ids = torch.randint(1, model.projector.vocab_size, (views, 4), generator=generator)
        instructions = Instructions(ids, torch.ones_like(ids, dtype=torch.bool))
    return Probe(shapes, plans, pixels, tuple(rows), instructions)


def _draw_text_ids(model: OneVision, generator: torch.Generator) -> list[int]:
    """Five random ids of plain text, never a placeholder of visuals here or in transformers."""
    tokenizer_source = model.backbone.tokenizer_source
    special = set(model.backbone.text_tokenizer.get_added_vocab().values()) if tokenizer_source else set()
    placeholder = model.backbone.placeholder_id
    special |= {placeholder - 1, placeholder, placeholder + 1}  # <video> is a neighbour of <image>
    ids = torch.randperm(model.backbone.vocab_size, generator=generator).tolist()
    return [token for token in ids if token not in special][:5]


@torch.no_grad()
def compute_our_logits(model: OneVision, probe: Probe, rows: Tensor | None = None) -> Tensor:
    """(rows, vocabulary) from a model of ours: all rows of a probe, or `rows`."""
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


def load_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A checkpoint in transformers' own class. Raises `CheckpointError` where keys differ."""
    from transformers import AutoModelForImageTextToText

    theirs, report = read_model(AutoModelForImageTextToText, folder, dtype=dtype, output_loading_info=True)
    if faults := list_loading_faults(report):
        raise CheckpointError(f"transformers does not load all of {folder}.\n  " + "\n  ".join(faults))
    return theirs.eval()


@torch.no_grad()
def compute_transformers_logits(
    theirs: PreTrainedModel, model: OneVision, probe: Probe, rows: Tensor | None = None
) -> Tensor:
    """(rows, vocabulary) from transformers' model, given the pixels of `model`'s plans: all rows, or `rows`."""
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
    pixels, instructions = model.normalise_pixels(probe.pixels).float(), probe.instructions
    if model_type in QFORMER_FAMILIES:
        # BLIP-2 always needs an image; one without tokens changes nothing.
        inputs = {"pixel_values": pixels if len(pixels) else torch.zeros(1, *pixels.shape[1:])}
        if not needs_text(model.projector):
            return inputs
        ids = torch.ones(1, 1, dtype=torch.int64)
        if instructions is not None and len(instructions.ids):
            ids = instructions.ids
        return {**inputs, "qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
    if not probe.shapes:
        return {}
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
