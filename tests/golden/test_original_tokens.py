"""Rows of visual tokens as LLaVA-NeXT assembles them, from features that name their own position.

feat(image, tile, row, column) has the cell's number in channel 0 and a position-dependent value in channel 1; the newline
is (-1, 100) and the faster token (-2, 300). Sizes in the files are (width, height).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmblocks.components import poolings, tokenizers
from mmblocks.shapes import Size, VisualShape

MARKS = {"newline": torch.tensor([-1.0, 100.0]), "faster_token": torch.tensor([-2.0, 300.0])}
MERGES = {
    "spatial_unpad": {"merge": "unpad"},
    "spatial_unpad_nobase": {"merge": "unpad", "base": False},
    "spatial": {"merge": "spatial"},
    "spatial_nobase": {"merge": "spatial", "base": False},
    "spatial_maxpool2x2": {"merge": "maxpool2x2"},
    "flat": {"merge": "flat"},
}
NEWLINES = {"grid": "grid", "frame": "frame", "one_token": "one_token", "no_token": "none"}


def golden(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name(f"{name}.safetensors"))


def features(tiles: int, side: int, image: int = 0) -> Tensor:
    """(tiles, side, side, 2): the stub encoder of the golden files."""
    t, r, c = torch.meshgrid(torch.arange(tiles), torch.arange(side), torch.arange(side), indexing="ij")
    number = 1_000_000 * image + t * side * side + r * side + c
    value = (7 * image + 31 * t + 17 * r + 13 * c) % 257 / 64 - 2
    return torch.stack([number, value], dim=-1).float()


def check_sums(rows: Tensor, case: dict[str, Any], interpolated: bool) -> None:
    weight = (torch.arange(len(rows)) % 97 + 1).double().unsqueeze(1)
    sums = {"sum": rows.double().sum(0), "abs_weighted": (rows.double() * weight).sum(0)}
    for name, got in sums.items():
        # Moves are exact. Interpolated sums are float32 taps added up in another order: relative to the numbers' size.
        torch.testing.assert_close(
            got, torch.tensor(case[name], dtype=torch.float64), rtol=1e-6 if interpolated else 0, atol=1e-2
        )


def check_close(got: Tensor, want: Tensor) -> None:
    """Interpolated rows: channel 0 counts to 26 000, so its float32 error is larger (tolerances of the golden files)."""
    torch.testing.assert_close(got[:, 0], want[:, 0], rtol=0, atol=1e-2)
    torch.testing.assert_close(got[:, 1], want[:, 1], rtol=0, atol=1e-4)


# One picture --------------------------------------------------------------------------------------------------------

ASSEMBLY = golden("assembly")
ASSEMBLY_ROWS = tensors("assembly")


def anyres(case: dict[str, Any]) -> Any:
    pinpoints = ASSEMBLY["sets"][case["pinpoints"]]
    merge = MERGES[case["merge"]]
    limit = case["aspect"].removeprefix("anyres").removeprefix("_max_")
    # The original reads the limit with "unpad" alone; elsewhere we refuse a setting that would change nothing.
    max_tiles = int(limit) if limit and merge["merge"] == "unpad" else None
    return tokenizers.build(
        {"name": "anyres", "pinpoints": pinpoints["spec"], "max_tiles": max_tiles, **merge},
        view_px=Size(pinpoints["tile"], pinpoints["tile"]),
        grid=Size(pinpoints["side"], pinpoints["side"]),
        spatial=True,
    )


@pytest.mark.parametrize("case", ASSEMBLY["cases"], ids=lambda c: c["name"])
def test_a_picture_becomes_the_same_tokens(case):
    tokenizer = anyres(case)
    width, height = case["size"]
    plan = tokenizer.plan(VisualShape("image", Size(height, width)))
    views = features(case["n_tiles"], ASSEMBLY["sets"][case["pinpoints"]]["side"])[case["n_tiles"] - len(plan.views) :]
    rows = tokenizer.assemble(views, plan, MARKS)

    assert tokenizer.find_faults() == []
    assert len(plan.views) == case["n_tiles"] - (not tokenizer.base)  # a base view nobody reads is not encoded
    assert plan.tiles[::-1] == tuple(case["grid_cols_rows"])
    assert tokenizer.count_tokens(plan) == len(rows) == case["n_tokens"]
    assert int((rows[:, 0] == -1).sum()) == case["n_newlines"]
    if case["interp"]:
        assert [list(plan.kept.size), list(plan.map_cells)] == [case["interp"]["from"], case["interp"]["to"]]
    check_sums(rows, case, interpolated=case["interpolated"])
    check_stored(rows, case)


def check_stored(rows: Tensor, case: dict[str, Any]) -> None:
    want = ASSEMBLY_ROWS.get(case["name"])
    if want is None:
        return
    if case["stored"] == "ids_int32":
        assert torch.equal(rows[:, 0].int(), want)
    else:
        at = ASSEMBLY_ROWS.get(f"{case['name']}#rows", torch.arange(len(rows)))
        check_close(rows[at.long()], want)


def test_every_stored_assembly_is_compared():
    names = {case["name"] for case in ASSEMBLY["cases"]}
    assert {key.removesuffix("#rows") for key in ASSEMBLY_ROWS} <= names


# Clips --------------------------------------------------------------------------------------------------------------

VIDEO = golden("video")
VIDEO_ROWS = tensors("video")


@pytest.mark.parametrize("case", VIDEO["pool"], ids=lambda c: c["name"])
def test_frames_are_pooled_alike(case):
    pooled = poolings.build(case["mode"], stride=case["stride"])(features(case["frames"], case["side"]))
    assert list(pooled.flatten(1, 2).shape) == case["out_shape"]
    check_close(pooled.flatten(0, 2), VIDEO_ROWS[case["name"]].flatten(0, 1))


def newline_of(case: dict[str, Any]) -> str:
    """Our name for where newlines go; the original decides by its merge type and its newline position together."""
    position = NEWLINES.get(case["newline_position"], "one_token")  # absent from the config: one_token
    if case["merge"] == "flat" or (position == "one_token" and "unpad" not in case["merge"]):
        return "none"
    return position


@pytest.mark.parametrize(
    "case", VIDEO["video"], ids=lambda c: f"{c['side']}-{c['frames']}-{c['mode']}-{c['newline_position']}-{c['merge']}"
)
def test_a_clip_becomes_the_same_tokens(case):
    tokenizer = tokenizers.build(
        {"name": "frames", "max_frames": case["frames"], "newline": newline_of(case)},
        view_px=Size(384, 384),
        grid=Size(case["side"], case["side"]),
        spatial=True,
        squash=True,
        pooling=poolings.build(case["mode"]),
    )
    plan = tokenizer.plan(VisualShape("video", Size(48, 64), num_frames=300, fps=30.0))
    rows = tokenizer.assemble(features(case["frames"], case["side"]), plan, MARKS)

    assert tokenizer.count_tokens(plan) == len(rows) == case["n_tokens"]
    newlines = (rows[:, 0] == -1).nonzero().flatten().tolist()
    assert len(newlines) == case["n_newlines"]
    assert newlines[:200] == case["newline_rows"]  # the file stores the first 200
    check_sums(rows, case, interpolated=True)
    if "tensor" in case:
        check_close(rows, VIDEO_ROWS[case["tensor"]])


@pytest.mark.parametrize("case", VIDEO["slowfast"], ids=lambda c: c["name"])
def test_slow_and_fast_frames_become_the_tokens_that_were_meant(case):
    """What the original computes once the name it forgot is bound."""
    tokenizer = tokenizers.build(
        {"name": "slow_fast", "max_frames": case["frames"], "every": case["faster_token_stride"]},
        view_px=Size(384, 384),
        grid=Size(case["side"], case["side"]),
        spatial=True,
        squash=True,
        pooling=poolings.build(case["mode"]),
    )
    plan = tokenizer.plan(VisualShape("video", Size(48, 64), num_frames=300, fps=30.0))
    x = features(case["frames"], case["side"])
    rows = tokenizer.assemble(x, plan, MARKS)

    assert tokenizer.count_tokens(plan) == len(rows) == case["n_tokens"]
    ends = (rows[:, 0] == -2).nonzero().flatten()
    assert torch.diff(ends, prepend=torch.tensor([-1])).tolist() == case["tokens_per_frame"]
    assert int((rows[:, 0] == -1).sum()) == case["n_newlines"]
    assert list(tokenizer.pooling(x).flatten(1, 2).shape) == case["slow_shape"]
    assert list(tokenizer.fast_pooling(x).flatten(1, 2).shape) == case["fast_shape"]
    # float32 taps added up in another order, as in check_sums.
    want = torch.tensor(case["sum"], dtype=torch.float64)
    torch.testing.assert_close(rows.double().sum(0), want, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("mode", ["bilinear", "average"])
def test_a_slow_and_a_fast_frame_hold_the_stored_cells(mode):
    tokenizer = tokenizers.build(
        {"name": "slow_fast", "every": 2},
        view_px=Size(384, 384),
        grid=Size(27, 27),
        spatial=True,
        squash=True,
        pooling=poolings.build(mode),
    )
    plan = tokenizer.plan(VisualShape("video", Size(48, 64), num_frames=2))
    rows = tokenizer.assemble(features(1, 27).expand(2, -1, -1, -1), plan, MARKS)
    cells = rows[rows[:, 0] >= 0]
    stored = [VIDEO_ROWS[f"pool|27|1|{mode}|{stride}"].flatten(0, 1) for stride in (2, 4)]
    check_close(cells, torch.cat(stored))


FRAMED = [c for c in VIDEO["video"] if newline_of(c) == "frame"]


@pytest.mark.parametrize("case", FRAMED, ids=lambda c: f"{c['side']}-{c['frames']}-{c['mode']}-{c['merge']}")
def test_stamped_frames_are_the_frames_of_a_clip_that_ends_each(case):
    tokenizer = tokenizers.build(
        {"name": "stamped_frames", "max_frames": case["frames"], "newline": True},
        view_px=Size(384, 384),
        grid=Size(case["side"], case["side"]),
        spatial=True,
        squash=True,
        pooling=poolings.build(case["mode"]),
    )
    plan = tokenizer.plan(VisualShape("video", Size(48, 64), num_frames=300, fps=30.0))
    rows = tokenizer.assemble(features(case["frames"], case["side"]), plan, MARKS)
    starts = [0, *(row + 1 for row in case["newline_rows"])][:-1]

    assert len(rows) == case["n_tokens"]
    assert [before for before, _ in plan.inline_texts][: len(starts)] == starts
    check_sums(rows, case, interpolated=True)
