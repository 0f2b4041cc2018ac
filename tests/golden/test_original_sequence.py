"""Whole prompts: text and visual tokens in one sequence, as LLaVA-NeXT splices them.

Everything between a conversation and the backbone's input is the real thing. Only the ends are stubs: an encoder whose
features name image, view and cell, and text whose token k is the character k and embeds to (-1000 - k, k / 8).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmblocks.batch import IGNORE, Batch, Packing
from mmblocks.components import Span, poolings, tokenizers
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.sample.encode import Encoded, encode_for_training, encode_prompt
from mmblocks.errors import DataError
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan, Size, VisualShape
from mmblocks.tokenizers.router import Router

MARKER = -200
PLACEHOLDER = 0
CASES = {c["name"]: c for c in json.loads(Path(__file__).with_name("sequence.json").read_text())["cases"]}
STORED = load_file(Path(__file__).with_name("sequence.safetensors"))

WRONG_COUNTS = {"placeholders_2_images_1", "placeholders_3_images_1"}
CUT = {"batch_truncate_14"}
ROWS_DROPPED = {"batch2_default_modalities"}


# The ends -----------------------------------------------------------------------------------------------------------


class Characters:
    """Text token k is the character k."""

    is_fast, bos_token, bos_token_id = True, None, None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    backend_tokenizer = None

    def __len__(self) -> int:
        return 0x110000

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]:
        return {"input_ids": [ord(c) for c in text], "offset_mapping": [(i, i + 1) for i in range(len(text))]}


@dataclass(frozen=True)
class AsGiven:
    """No template: the parts as they are; the tokens in `learned` are what the model writes."""

    learned: frozenset[int]
    stop: tuple[str, ...] = ()

    def to_spans(self, messages: Any) -> list[Span]:
        parts = [part for message in messages for part in message.parts]
        return [Span(p.text, ord(p.text) in self.learned) if isinstance(p, Text) else Span(p) for p in parts]

    def open_answer(self) -> list[Span]:
        return []


class Prepared(nn.Module):
    """An encoder that has its features already; its projector and backbone pass them on."""

    pixel_mean = pixel_std = (0.5, 0.5, 0.5)
    dim = 2

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Parameter(features, requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        assert len(pixels) == len(self.features)
        return self.features

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return torch.stack([-1000.0 - ids, ids / 8], dim=-1)


def features(image: int, tiles: int, side: int) -> Tensor:
    t, r, c = torch.meshgrid(torch.arange(tiles), torch.arange(side), torch.arange(side), indexing="ij")
    value = (7 * image + 31 * t + 17 * r + 13 * c) % 257 / 64 - 2
    return torch.stack([1_000_000 * image + t * side * side + r * side + c, value], dim=-1).float()


# A case in our words ------------------------------------------------------------------------------------------------


def router_of(case: dict[str, Any]) -> Router:
    config, side = case["config"], case["side"]
    view = Size(384, 384) if side == 27 else Size(336, 336)
    wired = {"view_px": view, "grid": Size(side, side), "spatial": True, "squash": True}
    # A stacked tensor of single views skips the original's merge, and with it the newline.
    newline = "unpad" in config["mm_patch_merge_type"] and case["images_ndim"] != 4
    image = tokenizers.build("pad", newline=newline, **wired)
    if 5 in case["tiles_per_image"]:
        # "highres" keeps no grid; the original then reads any five views as 2x2 tiles.
        pinpoints = config["image_grid_pinpoints"] if config["image_aspect_ratio"] != "highres" else "[(672, 672)]"
        image = tokenizers.build("anyres_max", pinpoints=pinpoints, **wired)
    video = tokenizers.build(
        "frames",
        max_frames=3,
        newline=config["mm_newline_position"],
        pooling=poolings.build(config["mm_spatial_pool_mode"]),
        **wired,
    )
    return Router(image=image, multi_image=image, video=video)


def is_video(case: dict[str, Any], n: int) -> bool:
    kinds = case["modalities"]
    return (kinds if isinstance(kinds, str) else [*kinds, *["image"] * n][n]) == "video"


def shapes(case: dict[str, Any]) -> list[VisualShape]:
    return [
        VisualShape("video", Size(height, width), num_frames=case["tiles_per_image"][n], fps=1.0)
        if is_video(case, n)
        else VisualShape("image", Size(height, width))
        for n, (width, height) in enumerate(case["image_sizes"])
    ]


def sequences(case: dict[str, Any]) -> list[list[int]]:
    """The rows of a padded batch without their padding."""
    mask = case["attention_mask"] or [[1] * len(ids) for ids in case["input_ids"]]
    return [[i for i, m in zip(ids, keep, strict=True) if m] for ids, keep in zip(case["input_ids"], mask, strict=True)]


def learned_ids(case: dict[str, Any]) -> frozenset[int]:
    return frozenset(label for row in case["labels"] or [] for label in row if label != IGNORE)


def conversation_of(ids: list[int], visuals: list[VisualShape]) -> Conversation:
    kinds = iter([*visuals, *[VisualShape("image", Size(1, 1))] * len(ids)])
    parts = tuple(Visual(next(kinds).kind, None) if i == MARKER else Text(chr(i)) for i in ids)
    return Conversation((Message("user", parts),), origin=f"ids {ids}")


def encode(case: dict[str, Any], ids: list[int], given: list[VisualShape], max_tokens: int | None = None) -> Encoded:
    encoder = encode_for_training if case["labels"] else encode_prompt
    return encoder(
        conversation_of(ids, given),
        router_of(case).plan(given),
        template=AsGiven(learned_ids(case)),
        text_tokenizer=Characters(),
        placeholder_id=PLACEHOLDER,
        max_tokens=max_tokens,
    )


def encoded_and_features(case: dict[str, Any]) -> tuple[list[Encoded], Tensor]:
    """Every row of the batch with the visuals it shows. A text-only row brings none: no dummy picture is needed."""
    given, samples, shown = list(enumerate(shapes(case))), [], []
    for ids in sequences(case):
        mine, given = given[: ids.count(MARKER)], given[max(ids.count(MARKER), 1) :]
        samples.append(encode(case, ids, [visual for _, visual in mine]))
        shown += [
            features(n + case["first_image_index"], len(routed.plan.views), case["side"])
            for (n, _), routed in zip(mine, samples[-1].plans, strict=True)
        ]
    return samples, torch.cat(shown)


def batch_of(samples: list[Encoded], num_views: int) -> Batch:
    lengths = [len(s) for s in samples]
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    plans: tuple[RoutedPlan, ...] = tuple(plan for s in samples for plan in s.plans)
    return Batch(
        input_ids=torch.cat([s.input_ids for s in samples]),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        targets=torch.cat([s.targets for s in samples]),
        packing=Packing.from_lengths(lengths),
        pixels=torch.zeros(num_views, 3, 1, 1, dtype=torch.uint8),
        plans=plans,
        visual_positions=torch.cat([s.visual_positions + at for s, at in zip(samples, starts, strict=True)]),
    )


def embedded(case: dict[str, Any]) -> tuple[list[Tensor], list[Encoded]]:
    """The rows that the backbone receives, one tensor per sequence."""
    samples, views = encoded_and_features(case)
    ends: Any = Prepared(views)
    model = OneVision(ends, nn.Identity(), router_of(case), ends, AsGiven(frozenset()), spec=None)  # type: ignore[arg-type]
    if "newline" in model.learned_tokens:
        model.learned_tokens["newline"].data = torch.tensor([-1.0, 100.0])
    rows = model.embed_tokens(batch_of(samples, len(views)))
    return list(rows.split([len(s) for s in samples])), samples


# What the original gave ---------------------------------------------------------------------------------------------


def stored(case: dict[str, Any], what: str) -> list[Tensor] | None:
    """Stored rows per sequence, their padding removed."""
    padded = STORED.get(f"{case['name']}#{what}")
    mask = STORED.get(f"{case['name']}#attention_mask")
    if padded is None:
        return None
    keep = torch.ones_like(padded, dtype=torch.bool) if mask is None else mask.bool()
    return [row[k] for row, k in zip(padded, keep, strict=True)]


def check_first_channel(rows: list[Tensor], want: list[Tensor]) -> None:
    for got, row in zip(rows, want, strict=True):
        # Clips are interpolated: channel 0 counts to a million per image, its float32 step is 0.06.
        torch.testing.assert_close(got[:, 0], row.float(), rtol=0, atol=1e-2 if row.is_floating_point() else 0)


def check_targets(samples: list[Encoded], labels: list[Tensor] | None) -> None:
    """Labels name a row's own token, targets the next one."""
    for sample, row in zip(samples, labels or [], strict=labels is not None):
        assert sample.targets.tolist() == [*row[1:].tolist(), IGNORE]


@pytest.mark.parametrize("name", sorted(CASES.keys() - WRONG_COUNTS - CUT - ROWS_DROPPED))
def test_a_batch_becomes_the_same_rows(name):
    case = CASES[name]
    rows, samples = embedded(case)
    assert [len(rows), max(map(len, rows)), 2] == case["out_shape"]
    total = torch.cat(rows).double().sum(0)
    torch.testing.assert_close(total, torch.tensor(case["sum"], dtype=torch.float64), rtol=0, atol=1e-2)
    check_targets(samples, stored(case, "labels"))
    if (want := stored(case, "ch0")) is not None:
        check_first_channel(rows, want)


@pytest.mark.parametrize("name", sorted(ROWS_DROPPED))
def test_no_sequence_of_a_batch_is_dropped(name):
    """The original returns as many rows as it was given modalities: one of two."""
    rows, samples = embedded(CASES[name])
    want = stored(CASES[name], "ch0")
    assert want is not None
    assert len(rows) == len(CASES[name]["input_ids"]) == 2
    assert len(want) == 1
    check_first_channel(rows[:1], want)
    check_targets(samples[:1], stored(CASES[name], "labels"))


@pytest.mark.parametrize("name", sorted(WRONG_COUNTS))
def test_a_picture_too_few_is_an_error(name):
    """The original shows the last picture twice when one is missing, and dies of an IndexError when two are."""
    case = CASES[name]
    (ids,) = sequences(case)
    with pytest.raises(DataError, match=f"1 plans for {ids.count(MARKER)} visuals"):
        encode(case, ids, shapes(case))


@pytest.mark.parametrize("name", sorted(CUT))
def test_a_sequence_over_the_limit_is_an_error_and_its_rows_agree_up_to_the_cut(name):
    """The original cuts at the limit, in the middle of a picture and before every label."""
    case = CASES[name]
    limit = case["config"]["tokenizer_model_max_length"]
    rows, _ = embedded(case)
    want = stored(case, "ch0")
    assert want is not None
    check_first_channel([row[:limit] for row in rows], want)
    for ids, visual in zip(sequences(case), shapes(case), strict=True):
        with pytest.raises(DataError, match=f"the limit is {limit}"):
            encode(case, ids, [visual], max_tokens=limit)
