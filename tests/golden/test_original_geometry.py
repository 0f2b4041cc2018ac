"""Integers of LLaVA-NeXT's own functions: canvases, resizing, unpadding, frames. Its sizes are (width, height)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmblocks.components import poolings, tokenizers
from mmblocks.geometry.anyres import (
    centre_box,
    count_tiles,
    find_best_canvas,
    find_kept_cells,
    parse_pinpoints,
    resize_within,
)
from mmblocks.geometry.frames import format_time_instruction, sample_frames
from mmblocks.shapes import Size, VisualShape


def golden(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())


SELECT = golden("anyres_select")
SETS = SELECT["pinpoint_sets"]


@pytest.mark.parametrize("name", SETS)
def test_pinpoints_name_the_same_canvases_in_the_same_order(name):
    canvases = parse_pinpoints(SETS[name]["spec"], Size(SETS[name]["tile"], SETS[name]["tile"]))
    assert [[c.width, c.height] for c in canvases] == SETS[name]["resolved"]


@pytest.mark.parametrize("name", ["next_336", "next_siglip"])
def test_the_preset_counted_in_tiles_names_the_canvases_of_both_encoders(name):
    view = Size(SETS[name]["tile"], SETS[name]["tile"])
    canvases = tokenizers.build("anyres_next", view_px=view, grid=Size(2, 2), spatial=True).canvases
    assert [[c.width, c.height] for c in canvases] == SETS[name]["resolved"]


@pytest.mark.parametrize("name", SETS)
def test_every_picture_goes_to_the_same_canvas(name):
    tile = Size(SETS[name]["tile"], SETS[name]["tile"])
    canvases = parse_pinpoints(SETS[name]["spec"], tile)
    wrong = []
    for width, height, canvas_wh, columns_rows in (c[1:5] for c in SELECT["cases"] if c[0] == name):
        canvas = find_best_canvas(Size(height, width), canvases)
        rows, columns = count_tiles(canvas, tile)
        if [canvas.width, canvas.height] != canvas_wh or [columns, rows] != columns_rows:
            wrong.append((width, height, canvas, canvas_wh))
    assert wrong == []


def test_pictures_are_resized_and_placed_on_their_canvas_alike():
    wrong = []
    for width, height, canvas_w, canvas_h, *placed in golden("resize_pad_geometry")["cases"]:
        canvas = Size(canvas_h, canvas_w)
        resized = resize_within(Size(height, width), canvas)
        box = centre_box(resized, canvas)
        if [resized.width, resized.height, box.left, box.top] != placed:
            wrong.append((width, height, canvas, placed, resized, box))
    assert wrong == []


def test_unpadding_keeps_the_same_rows_and_columns():
    wrong = []
    for rows, columns, width, height, kept_rows, kept_columns in golden("unpad")["cases"]:
        box = find_kept_cells(Size(rows, columns), Size(height, width))
        if kept_columns is None:  # an empty map: only its shape is known
            same = list(box.size) == kept_rows
        else:
            same = [box.top, box.top + box.height] == kept_rows and [box.left, box.left + box.width] == kept_columns
        if not same:
            wrong.append((rows, columns, width, height, kept_rows, kept_columns, box))
    assert wrong == []


def test_clips_show_the_same_frames_at_the_same_times():
    wrong = []
    for case in golden("frames")["cases"]:
        sample = sample_frames(
            case["total_frames"],
            case["avg_fps"],
            max_frames=case["frames_upbound"] or None,
            fps_wanted=case["video_fps"],
            force=case["force_sample"],
        )
        times = ",".join(f"{t:.2f}s" for t in sample.compute_times_s(clock="steps"))
        indices, said = list(sample.indices), format_time_instruction(sample, clock="steps")
        agree = [
            len(indices) == case["num_frames"],
            same_frames(indices, case["frame_idx"]),
            times == case["frame_time"] or ("time_instruction" not in case and times.startswith(case["frame_time"])),
            sample.duration_s == case["video_time"],
            said == case.get("time_instruction", said),
        ]
        if not all(agree):
            wrong.append((case, agree, indices))
    assert wrong == []


INSTRUCTED = [case for case in golden("frames")["cases"] if "time_instruction" in case]


@pytest.mark.parametrize("case", INSTRUCTED, ids=lambda c: f"{c['total_frames']}-{c['avg_fps']}-{c['frames_upbound']}")
def test_a_clip_tells_its_times_in_the_same_sentence_behind_its_rows(case):
    tokenizer = tokenizers.build(
        {
            "name": "frames",
            "max_frames": case["frames_upbound"] or case["total_frames"],
            "fps": float(case["video_fps"]),
            "force": case["force_sample"] and case["frames_upbound"] > 0,
            "tell_times": "steps",
        },
        view_px=Size(8, 8),
        grid=Size(4, 4),
        spatial=True,
        squash=True,
        pooling=poolings.build("bilinear"),
    )
    plan = tokenizer.plan(VisualShape("video", Size(8, 8), case["total_frames"], case["avg_fps"]))
    assert len(plan.views) == case["num_frames"]
    assert plan.inline_texts == ((plan.num_tokens, "\n" + case["time_instruction"] + "\n"),)


def same_frames(indices: list[int], stored: list[int] | dict[str, Any]) -> bool:
    """Long clips are stored as their ends and their number."""
    if isinstance(stored, list):
        return indices == stored
    return [indices[:10], indices[-5:], len(indices)] == [stored["first_10"], stored["last_5"], stored["n"]]
