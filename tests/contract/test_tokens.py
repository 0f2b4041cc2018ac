"""The plan counts visual tokens and nobody else: counted = placeholders = features, for every combination of parts."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.components import encoders, poolings, projectors, tokenizers
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.build import build
from mmblocks.shapes import Size, VisualShape

ODD_SIZES = [
    *(Size(h, w) for h, w in itertools.product((1, 2, 29, 30, 31, 61), repeat=2)),
    *(Size(h, w) for h, w in [(1, 4000), (4000, 1), (700, 1000), (1000, 700), (333, 37), (97, 101), (48, 640)]),
    *(Size(h, w) for h, w in [(640, 48), (384, 384), (719, 1279), (13, 17), (24, 25), (90, 89), (59, 121)]),
]
PICTURES = [VisualShape("image", size) for size in ODD_SIZES]
CLIPS = [VisualShape("video", Size(9, 160), frames, fps) for frames in (1, 2, 3, 8, 33, 901) for fps in (1.0, 29.97)]


def tiny(registry, name):
    return name if registry.find_info(name).preset_of else {"name": name, **registry[name].tiny}


def bases(registry):
    return [tiny(registry, name) for name in registry if not registry.find_info(name).preset_of]


def name_of(spec):
    return spec if isinstance(spec, str) else "-".join(v for v in spec.values() if isinstance(v, str))


MARKED = {"name": "tiles_marked", "side_tiles": 3, "marking": "learned"}
POOLED = {"name": "scene_views", "pooled": True, "newline": True, "framing": "cropped"}
NEWLINES = [{"name": "frames", "max_frames": 4, "newline": newline} for newline in ("grid", "frame", "none")]
MERGES = [{"name": "anyres", "pinpoints": "(1x1),...,(3x3)", "merge": m} for m in ("spatial", "maxpool2x2", "flat")]
SHRUNK = {"name": "anyres", "pinpoints": "(1x1),...,(6x6)", "max_tiles": 2, "base": False}
TOKENIZERS = [*(tiny(tokenizers, name) for name in tokenizers), *MERGES, SHRUNK, MARKED, POOLED, *NEWLINES]
ENCODERS = [*bases(encoders), {"name": "clip", **encoders["clip"].tiny, "select": "cls_patch"}]


def refuses(projector, encoder):
    """Whether a projector says that it cannot take the encoder's grid: then there is nothing to count."""
    with torch.device("meta"):
        seen = encoders.build(encoder)
        try:
            projectors.build(projector, in_dim=seen.dim, out_dim=seen.dim, grid=seen.grid).out_grid(seen.grid)
        except ConfigError as why:
            return str(seen.grid) in str(why)
    return False


@torch.no_grad()
def features_of(encoder, projector):
    """Projected features of two views, and what a tokenizer learns of encoder and projector."""
    seen = encoders.build(encoder)
    projected = projectors.build(projector, in_dim=seen.dim, out_dim=seen.dim, grid=seen.grid)
    beside = {
        "view_px": seen.view_px,
        "grid": projected.out_grid(seen.grid),
        "spatial": seen.spatial and projected.spatial,
        "squash": seen.squash,
    }
    return projected(seen(torch.rand(2, 3, *seen.view_px))), beside


def require_count(tokenizer, shape, features):
    """Plan one visual and assemble as many views as it asks for."""
    plan = tokenizer.plan(shape)
    marks = {mark: torch.zeros(features.shape[-1]) for mark in tokenizer.learned_tokens}
    rows = tokenizer.assemble(features.expand(len(plan.views), -1, -1, -1), plan, marks)

    assert all(view.window.size == tokenizer.view_px for view in plan.views)
    assert plan.num_tokens == tokenizer.count_tokens(plan) == len(rows), shape


@pytest.mark.parametrize(
    ("encoder", "projector"),
    [(encoder, tiny(projectors, "mlp")) for encoder in ENCODERS]
    + [
        (encoder, projector)
        for encoder in [*ENCODERS[-1:], tiny(encoders, "tiny_conv")]
        for projector in bases(projectors)
    ],
    ids=name_of,
)
def test_counted_tokens_are_the_rows_that_come_out(encoder, projector):
    if refuses(projector, encoder):
        return
    features, beside = features_of(encoder, projector)
    assert features.shape[:3] == (2, *beside["grid"])

    everywhere = {"pad", "pad_newline", "square", "highres", "anyres-(1x1),...,(3x3)-flat", "frames-none"}
    everywhere |= {"tiling", "tiles_marked", "tiles_marked-learned", "crop_split", "scene_views", "stamped_frames"}
    assert tokenizers_that_count_right(**beside, dim=features.shape[-1]) >= everywhere


@cache
def tokenizers_that_count_right(view_px, grid, spatial, squash, dim):
    """Require the counts of all tokenizers over all poolings; the names of those that can stand here.

    How many rows come out depends on the shape of features and on nothing in them, so each shape is counted once.
    """
    features, served = torch.zeros(1, *grid, dim), set()
    beside = {"view_px": view_px, "grid": grid, "spatial": spatial, "squash": squash}
    for pooling, spec in itertools.product(bases(poolings), TOKENIZERS):
        tokenizer = tokenizers.build(spec, **beside, pooling=poolings.build(pooling))
        pooled = "video" in tokenizer.scenarios
        if tokenizer.find_faults() or (name_of(spec) in served and not pooled):
            continue
        served.add(name_of(spec))
        for shape in CLIPS if pooled else PICTURES:
            require_count(tokenizer, shape, features)
    return frozenset(served)


def asked(*visuals):
    kinds = ["image" if isinstance(v, Image.Image) else "video" for v in visuals]
    content = [{"type": kind, kind: v} for kind, v in zip(kinds, visuals, strict=True)]
    return Conversation.from_messages(
        [{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}]
    )


def blank(size):
    return Image.new("RGB", (size.width, size.height))


CONVERSATIONS = {
    "image": [asked(blank(size)) for size in ODD_SIZES],
    "multi_image": [asked(blank(a), blank(b)) for a, b in zip(ODD_SIZES[::2], ODD_SIZES[1::2], strict=True)],
    "video": [asked(np.zeros((frames, 9, 16, 3), np.uint8)) for frames in (1, 2, 3, 4, 5, 9)],
}
PLACEHOLDER = 639  # no word of TinyWorld
BESIDE = {"view_px": Size(24, 24), "grid": Size(6, 6), "spatial": True, "squash": True}
SERVED = [
    (scenario, spec)
    for spec in TOKENIZERS
    for scenario in sorted(tokenizers.build(spec, **BESIDE, pooling=poolings.build("none")).scenarios)
]


@pytest.mark.parametrize(("scenario", "tokenizer"), SERVED, ids=name_of)
@torch.no_grad()
def test_placeholders_and_features_are_what_the_plan_says(tiny_spec, scenario, tokenizer):
    backbone = {**tiny_spec["backbone"], "max_tokens": 8192, "placeholder_id": PLACEHOLDER}
    chosen = {**tiny_spec["tokenizer"], scenario: tokenizer}
    model = build({**tiny_spec, "tokenizer": chosen, "backbone": backbone}, seed=0)
    processor = Processor.from_model(model)
    samples = [processor.make_prompt_sample(conversation) for conversation in CONVERSATIONS[scenario]]
    batch = collate(samples)
    planned = [sum(r.plan.num_tokens for r in sample.encoded.plans) for sample in samples]

    assert {r.scenario for r in batch.plans} == {scenario}
    assert [len(s.encoded.visual_positions) for s in samples] == planned
    assert [int((s.encoded.input_ids == PLACEHOLDER).sum()) for s in samples] == planned
    assert len(model.compute_visual_tokens(batch)) == len(batch.visual_positions) == sum(planned)
    assert len(batch.pixels) == sum(len(r.plan.unique_views) for r in batch.plans)
    assert len(batch.with_all_views().pixels) == sum(len(r.plan.views) for r in batch.plans)
