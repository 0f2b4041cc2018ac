"""The same tokens and pixels through two models: how far apart their logits are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import IGNORE, Batch, Packing
from mmblocks.errors import CheckpointError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan, Size, VisualShape

TOLERANCE = 1e-4
"""fp32: kernels of two code paths sum in different orders; an error of structure shows at 1e-2 and above."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One conversation, as rows: text ids, and visuals of random pixels in their places."""

    shapes: tuple[VisualShape, ...]
    plans: tuple[RoutedPlan, ...]
    pixels: Tensor
    rows: tuple[int | None, ...]
    """A text id, or None where a visual token stands; visuals are separated by text."""


def probes(model: OneVision, seed: int = 0) -> list[Probe]:
    """A wide picture, two pictures, a clip of three frames, and text alone."""
    view = model.encoder.view_px
    wide = VisualShape("image", Size(view.height, 2 * view.width + 3))
    square = VisualShape("image", Size(view.height, view.width))
    clip = VisualShape("video", Size(view.height, view.width), num_frames=3)
    generator = torch.Generator().manual_seed(seed)
    return [_probe(model, shapes, generator) for shapes in ((wide,), (square, wide), (clip,), ())]


def _probe(model: OneVision, shapes: tuple[VisualShape, ...], generator: torch.Generator) -> Probe:
    plans = model.router.plan(shapes)
    views = sum(len(routed.plan.views) for routed in plans)
    pixels = torch.randint(0, 256, (views, 3, *model.encoder.view_px), generator=generator, dtype=torch.uint8)
    rows = [*_text(model, generator)]
    for routed in plans:
        rows += [*[None] * routed.plan.num_tokens, *_text(model, generator)]
    return Probe(shapes, plans, pixels, tuple(rows))


def _text(model: OneVision, generator: torch.Generator) -> list[int]:
    """Five random ids of plain text, never one that stands for visuals here or in transformers."""
    tokenizer_source = model.backbone.tokenizer_source
    special = set(model.backbone.text_tokenizer.get_added_vocab().values()) if tokenizer_source else set()
    special |= {model.backbone.placeholder_id, model.backbone.placeholder_id + 1}  # <video> follows <image>
    ids = torch.randperm(model.backbone.vocab_size, generator=generator).tolist()
    return [token for token in ids if token not in special][:5]


@torch.no_grad()
def our_logits(model: OneVision, probe: Probe) -> Tensor:
    """(rows, vocabulary) from a model of ours."""
    ids = torch.tensor([model.backbone.placeholder_id if row is None else row for row in probe.rows])
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(len(ids)),
        targets=torch.full_like(ids, IGNORE),
        packing=Packing.of([len(ids)]),
        pixels=probe.pixels,
        plans=probe.plans,
        visual_positions=torch.tensor([i for i, row in enumerate(probe.rows) if row is None], dtype=torch.int64),
    )
    return model.eval().logits(batch)


def load_transformers(folder: Path) -> Any:
    """A `llava_onevision` checkpoint in transformers' own class, in fp32. Raises `CheckpointError` where keys differ."""
    from transformers import LlavaOnevisionForConditionalGeneration

    kind: Any = LlavaOnevisionForConditionalGeneration
    theirs, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    troubles = ("missing_keys", "unexpected_keys", "mismatched_keys")
    if faults := [f"{name}: {', '.join(sorted(map(str, report[name])))}" for name in troubles if report.get(name)]:
        raise CheckpointError(f"transformers does not load {folder} whole.\n  " + "\n  ".join(faults))
    return theirs.eval()


@torch.no_grad()
def transformers_logits(theirs: Any, model: OneVision, probe: Probe) -> Tensor:
    """(rows, vocabulary) from transformers' model, given the pixels of `model`'s plans."""
    token = theirs.config.video_token_id if _is_clip(probe) else theirs.config.image_token_id
    ids = torch.tensor([[token if row is None else row for row in probe.rows]])
    return theirs(input_ids=ids, **_pixels(model, probe)).logits[0]


def _is_clip(probe: Probe) -> bool:
    return any(shape.kind == "video" for shape in probe.shapes)


def _pixels(model: OneVision, probe: Probe) -> dict[str, Tensor]:
    if not probe.shapes:
        return {}
    pixels = model.normalised(probe.pixels).float()
    if _is_clip(probe):
        return {"pixel_values_videos": pixels[None]}
    views = pixels.split([len(routed.plan.views) for routed in probe.plans])
    return {
        "pixel_values": torch.stack(list(views)),
        "image_sizes": torch.tensor([list(shape.size) for shape in probe.shapes]),
        "batch_num_images": torch.tensor([len(probe.shapes)]),
    }
