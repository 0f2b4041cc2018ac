"""Texts that tokenizers tell between visual rows: stamps, times, places and marks of tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmblocks.components import poolings, tokenizers
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.budget import CHARACTERS_PER_TOKEN, estimate_budget
from mmblocks.model.build import build as build_model
from mmblocks.model.convert.probe import compute_our_logits, make_probes
from mmblocks.shapes import Size, VisualPlan, VisualShape
from mmblocks.tokenizers.router import Router

CELLS, VIEW = Size(2, 2), Size(4, 4)


def build(spec, *, grid=CELLS, spatial=True, pooling="none"):
    """A tokenizer over views of 4x4 pixels that become 2x2 cells."""
    return tokenizers.build(
        spec, view_px=VIEW, grid=grid, spatial=spatial, squash=True, pooling=poolings.build(pooling)
    )


def clip(num_frames, fps=1.0):
    return VisualShape("video", Size(4, 4), num_frames, fps)


def view(note="", size=VIEW):
    return VisualShape("image", size, note=note)


def router(**chosen):
    return Router(**{"image": build("pad"), "multi_image": build("pad"), "video": build("frames"), **chosen})


# Plans --------------------------------------------------------------------------------------------------------------


def test_a_plan_without_told_texts_is_one_run_of_rows():
    assert VisualPlan((), 7).split_into_pieces() == (7,)


def test_told_texts_stand_before_between_and_after_rows():
    plan = VisualPlan((), 5, inline_texts=((0, "a"), (2, "b"), (2, "c"), (5, "d")))
    assert plan.split_into_pieces() == ("a", 2, "b", "c", 3, "d")


def test_empty_texts_and_empty_runs_are_nothing():
    assert VisualPlan((), 0, inline_texts=((0, ""),)).split_into_pieces() == ()
    assert VisualPlan((), 4, inline_texts=((2, ""),)).split_into_pieces() == (2, 2)


@pytest.mark.parametrize("told", [((6, "late"),), ((3, "b"), (2, "a"))])
def test_a_text_outside_the_rows_is_a_programmers_mistake(told):
    with pytest.raises(AssertionError, match="inline_texts="):
        VisualPlan((), 5, inline_texts=told).split_into_pieces()


# Videos --------------------------------------------------------------------------------------------------------------


def test_every_frame_stands_behind_its_stamp():
    plan = build({"name": "stamped_frames", "fps": 1.0}).plan(clip(5, fps=2.0))
    assert plan.split_into_pieces() == ("0.00s: ", 4, "1.00s: ", 4, "2.00s: ", 4)


@pytest.mark.parametrize(
    ("stamp", "second"),
    [("Frame {number}: ", "Frame 2: "), ("\nFrame from {clock}:", "\nFrame from 01:15:"), ("[{seconds:.0f}]", "[75]")],
)
def test_a_stamp_names_number_seconds_or_clock(stamp, second):
    plan = build({"name": "stamped_frames", "stamp": stamp, "max_frames": 2}).plan(clip(76))
    assert plan.inline_texts[1] == (4, second)


def test_frames_as_images_are_bare_and_end_in_newlines():
    tokenizer = build("frames_as_images")
    plan = tokenizer.plan(clip(2))
    rows = tokenizer.assemble(torch.arange(8.0).view(2, 2, 2, 1), plan, {"newline": torch.tensor([-1.0])})
    assert plan.inline_texts == ()
    assert rows.flatten().tolist() == [0, 1, 2, 3, -1, 4, 5, 6, 7, -1]


@pytest.mark.parametrize("stamp", ["{second}", "{0}", "{seconds", "{seconds:d}", "{clock.nothing}"])
def test_a_stamp_that_cannot_be_filled_in_is_refused(stamp):
    with pytest.raises(ConfigError, match=r"stamp=.* cannot be filled in .* \{number\}, \{seconds\}, \{clock\}"):
        build({"name": "stamped_frames", "stamp": stamp})


def test_times_are_told_behind_the_frames():
    plan = build({"name": "frames", "fps": 1.0, "tell_times": "seconds"}).plan(clip(4, fps=2.0))
    assert plan.split_into_pieces() == (
        9,
        "\nThe video lasts for 2.00 seconds, and 2 frames are uniformly sampled from it. "
        "These frames are located at 0.00s,1.00s.Please answer the following questions related to this video.\n",
    )
    assert build("frames").plan(clip(4)).inline_texts == ()


# Slow and fast frames -----------------------------------------------------------------------------------------------


def slow_fast(pooling="average", **settings):
    return build({"name": "slow_fast", "every": 2, **settings}, grid=Size(4, 4), pooling=pooling)


def test_slow_frames_have_more_cells_than_fast_ones():
    tokenizer = slow_fast()
    plan = tokenizer.plan(clip(3))
    x = 100.0 * torch.arange(3).view(3, 1, 1, 1).expand(3, 4, 4, 1)
    rows = tokenizer.assemble(x, plan, {"newline": torch.tensor([-1.0]), "faster_token": torch.tensor([-2.0])})
    slow, fast = [0, 0, -1, 0, 0, -1, -2], [100, -1, -2]
    assert rows.flatten().tolist() == [*slow, *fast, *(200 if r == 0 else r for r in slow)]
    assert tokenizer.count_tokens(plan) == len(rows) == 17


def test_llava_video_gives_2440_tokens_for_32_frames():
    tokenizer = build("slow_fast", grid=Size(27, 27), pooling="bilinear")
    assert [tokenizer.plan(clip(n)).num_tokens for n in (1, 2, 32)] == [211, 268, 2440]


def test_every_frame_may_be_slow():
    tokenizer = slow_fast(every=1)
    assert tokenizer.plan(clip(3)).num_tokens == 21
    rows = tokenizer.assemble(
        torch.zeros(3, 4, 4, 1), tokenizer.plan(clip(3)), {m: torch.ones(1) for m in tokenizer.learned_tokens}
    )
    assert len(rows) == 21


def test_slow_fast_says_why_it_cannot_pool():
    assert slow_fast().find_faults() == []
    assert "has no stride" in str(slow_fast("none").find_faults()[0])
    assert "does not fit" in str(slow_fast(fast_stride=5).find_faults()[0])
    queries = build("slow_fast", grid=Size(1, 4), spatial=False, pooling="bilinear")
    assert "no image order" in str(queries.find_faults()[0])


@pytest.mark.parametrize("settings", [{"every": 0}, {"fast_stride": 0}, {"max_frames": 0}, {"fps": -1.0}])
def test_slow_fast_refuses_numbers_without_meaning(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=f"tokenizer 'slow_fast': {name}="):
        slow_fast(**settings)


# Views of a scene ---------------------------------------------------------------------------------------------------


def test_a_view_stands_behind_where_it_was_taken():
    tokenizer = build("scene_views")
    assert tokenizer.plan(view("camera at (1, 2)")).split_into_pieces() == ("camera at (1, 2): ", 4)
    assert tokenizer.plan(view()).split_into_pieces() == (4,)
    facing = build({"name": "scene_views", "pose": "<pose>{note}</pose>"})
    assert facing.plan(view("east")).split_into_pieces() == ("<pose>east</pose>", 4)


def test_views_of_a_scene_may_be_pooled_and_ended():
    tokenizer = build({"name": "scene_views_pooled", "newline": True}, pooling="average")
    plan = tokenizer.plan(view("east"))
    rows = tokenizer.assemble(torch.arange(4.0).view(1, 2, 2, 1), plan, {"newline": torch.tensor([-1.0])})
    assert rows.flatten().tolist() == [1.5, -1]
    assert plan.num_tokens == 2


@pytest.mark.parametrize("newline", [False, True])
def test_a_view_without_a_note_is_a_padded_picture(newline):
    """The tokens of several images in LLaVA-NeXT, which the golden prompts compare for 'pad'."""
    shape = view(size=Size(3, 9))
    assert build({"name": "scene_views", "newline": newline}).plan(shape) == build(
        {"name": "pad", "newline": newline}
    ).plan(shape)


def test_pooled_views_need_a_picture_order():
    queries = build("scene_views_pooled", grid=Size(1, 4), spatial=False, pooling="bilinear")
    assert "no image order" in str(queries.find_faults()[0])
    assert build("scene_views", grid=Size(1, 4), spatial=False, pooling="bilinear").find_faults() == []


@pytest.mark.parametrize(("pose", "says"), [("here", "does not say {note}"), ("{place}", "cannot be filled in")])
def test_a_pose_that_tells_no_note_is_refused(pose, says):
    with pytest.raises(ConfigError, match=says):
        build({"name": "scene_views", "pose": pose})


def test_notes_come_from_the_conversation():
    parts = [{"type": "image", "image": "a.png", "note": "east"}, {"type": "image_url", "image_url": "b.png"}]
    conversation = Conversation.from_messages([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}])
    assert [visual.note for visual in conversation.visuals] == ["east", ""]


def test_a_note_is_a_text():
    with pytest.raises(DataError, match=r"message 0, part 0: note is \[1, 2\]"):
        Conversation.from_messages([{"role": "user", "content": [{"type": "image", "image": "a.png", "note": [1, 2]}]}])


def test_a_note_that_nobody_tells_is_not_lost_silently():
    scene = router(image=build("scene_views"), multi_image=build("scene_views"))
    assert [r.plan.inline_texts for r in scene.plan([view("east"), view()])] == [((0, "east: "),), ()]
    with pytest.raises(DataError, match=r"visual 2 \(image\) has the note 'east', which the tokenizer of multi_image"):
        router().plan([view(), view("east")])


# Tiles --------------------------------------------------------------------------------------------------------------


def test_tiles_are_nearest_to_the_pictures_shape_and_the_thumbnail_is_last():
    tokenizer = build("tiling")
    plan = tokenizer.plan(view(size=Size(8, 16)))
    assert plan.tiles == (2, 4)
    assert [v.window[:2] for v in plan.views] == [(r, c) for r in (0, 4) for c in (0, 4, 8, 12)] + [(0, 0)]
    assert plan.views[-1].resized == (4, 4)
    assert {v.resized for v in plan.views[:-1]} == {(8, 16)}
    assert tokenizer.assemble(torch.zeros(9, 2, 2, 1), plan, {}).shape == (36, 1)


def test_a_picture_of_one_tile_has_no_thumbnail():
    assert len(build({"name": "tiling", "max_tiles": 1}).plan(view(size=Size(40, 40))).views) == 1
    assert len(build({"name": "tiling", "thumbnail": False}).plan(view(size=Size(8, 16))).views) == 8


@pytest.mark.parametrize("settings", [{"min_tiles": 0}, {"min_tiles": 4, "max_tiles": 3}])
def test_tiling_needs_a_number_of_tiles(settings):
    with pytest.raises(ConfigError, match="leave no number of tiles"):
        build({"name": "tiling", **settings})


def test_learned_marks_stand_before_tiles_and_behind_their_rows():
    tokenizer = build({"name": "tiles_marked_learned", "side_tiles": 2})
    values = [-11.0, -12.0, -21.0, -22.0, -1.0, -2.0]
    marks = {name: torch.tensor([value]) for name, value in zip(tokenizer.learned_tokens, values, strict=True)}
    plan = tokenizer.plan(view(size=Size(8, 8)))
    x = 100.0 * torch.arange(5).view(5, 1, 1, 1) + torch.arange(4).view(1, 2, 2, 1)
    upper = [-11, 0, 1, 2, 3, -12, 100, 101, 102, 103, -1]
    lower = [-21, 200, 201, 202, 203, -22, 300, 301, 302, 303, -1]
    assert tokenizer.learned_tokens == (
        "row_1_col_1",
        "row_1_col_2",
        "row_2_col_1",
        "row_2_col_2",
        "line_end",
        "global",
    )
    assert tokenizer.assemble(x, plan, marks).flatten().tolist() == [*upper, *lower, -2, 400, 401, 402, 403]
    assert plan.num_tokens == 27


def test_told_marks_take_no_rows():
    plan = build({"name": "tiles_marked", "side_tiles": 2}).plan(view(size=Size(8, 4)))
    assert plan.split_into_pieces() == ("<row_1_col_1>", 4, "\n<row_2_col_1>", 4, "\n\n<global-img>", 4)
    assert plan.num_tokens == 12


def test_marks_are_told_or_learned():
    with pytest.raises(ConfigError, match="side_tiles=0"):
        build({"name": "tiles_marked", "side_tiles": 0})
    (fault,) = build({"name": "tiles_marked_learned", "around": "<i>"}).find_faults()
    assert "around='<i>' is a text, and marking='learned' writes none" in str(fault)


def test_crop_split_shows_the_middle_square_in_tiles():
    tokenizer = build({"name": "crop_split", "side_px": 9})
    plan = tokenizer.plan(view(size=Size(18, 27)))
    assert [v.window[:2] for v in plan.views] == [(0, 2), (0, 6), (4, 2), (4, 6)]
    assert {(v.resized, v.resize) for v in plan.views} == {(Size(9, 13), "lanczos")}
    assert "holds no tile" in str(build({"name": "crop_split", "side_px": 3}).find_faults()[0])


# In a model ---------------------------------------------------------------------------------------------------------

STAMPED = {"name": "stamped_frames", "max_frames": 4, "stamp": "red {number} "}


def with_video(spec, tokenizer):
    return {**spec, "tokenizer": {**spec["tokenizer"], "video": tokenizer}}


def asked(model):
    clip = {"type": "video", "video": np.zeros((3, 9, 16, 3), np.uint8)}
    content = [clip, {"type": "text", "text": "What is it?"}]
    return Processor.from_model(model).make_prompt_sample(
        Conversation.from_messages([{"role": "user", "content": content}])
    )


@torch.no_grad()
def test_told_text_is_embedded_as_text_and_rows_as_visual_tokens(tiny_spec):
    model = build_model(with_video(tiny_spec, STAMPED), seed=0)
    batch = collate([asked(model)])
    x, visual = model.embed_tokens(batch), batch.visual_positions
    text = torch.ones(len(x), dtype=torch.bool).index_fill(0, visual, False)
    assert torch.equal(x[visual], model.compute_visual_tokens(batch))
    assert torch.equal(x[text], model.backbone.embed_tokens(batch.input_ids)[text])
    assert visual.diff().min() > 1  # a frame is one row here, and its stamp stands before it


def test_a_budget_counts_the_told_text_that_a_prompt_holds(tiny_spec):
    model = build_model(with_video(tiny_spec, STAMPED), seed=0)
    bare = build_model(with_video(tiny_spec, {**STAMPED, "stamp": ""}), seed=0)
    budget = estimate_budget(model.spec, [VisualShape("video", Size(9, 16), num_frames=3)], text_tokens=5)
    assert budget.inline_text_tokens == len(asked(model).encoded) - len(asked(bare).encoded) > 0
    assert budget.sequence_tokens == budget.visual_tokens + budget.inline_text_tokens + 5


def test_a_budget_guesses_told_text_without_a_text_tokenizer(tiny_spec):
    spec = with_video(tiny_spec, STAMPED)
    spec["backbone"] = {**spec["backbone"], "text_tokenizer": None}
    budget = estimate_budget(spec, [VisualShape("video", Size(9, 16), num_frames=3)])
    assert budget.inline_text_tokens == 3 * len("red 1 ") // CHARACTERS_PER_TOKEN
    assert "is guessed at a token per 2 characters" in budget.notes[0]


def test_a_probe_tells_some_text_where_a_plan_does(tiny_spec):
    model = build_model(with_video(tiny_spec, STAMPED), seed=0)
    probe = next(p for p in make_probes(model) if any(shape.kind == "video" for shape in p.shapes))
    begin, end = probe.rows.index(None), len(probe.rows) - probe.rows[::-1].index(None)
    assert probe.rows.count(None) == probe.plans[0].plan.num_tokens < end - begin
    assert compute_our_logits(model, probe).shape[0] == len(probe.rows)
