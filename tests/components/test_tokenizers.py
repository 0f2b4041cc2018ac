"""Visual tokenizers, from features whose value is 100 * view + cell and a newline of -1."""

from __future__ import annotations

import pickle

import pytest
import torch
from einops import rearrange

from mmblocks.components import poolings, tokenizers
from mmblocks.errors import ConfigError, DataError
from mmblocks.shapes import RoutedPlan, Size, VisualShape
from mmblocks.tokenizers.router import Router

MARKS = {"newline": torch.tensor([-1.0])}
CELLS = Size(2, 2)
OVERVIEW = [0, 1, 2, 3]


def numbered(views, grid=CELLS):
    return 100.0 * torch.arange(views).view(-1, 1, 1, 1) + torch.arange(grid.area).view(1, *grid, 1)


def build(spec, *, grid=CELLS, spatial=True, squash=True, pooling="none"):
    """A tokenizer over views of 4x4 pixels that become 2x2 cells."""
    return tokenizers.build(
        spec, view_px=Size(4, 4), grid=grid, spatial=spatial, squash=squash, pooling=poolings.build(pooling)
    )


def anyres(**settings):
    return build({"name": "anyres", "pinpoints": "(1x1),...,(3x3)", **settings})


def picture(height, width):
    return VisualShape("image", Size(height, width))


def clip(num_frames, fps=1.0):
    return VisualShape("video", Size(4, 4), num_frames, fps)


def assembled(tokenizer, visual):
    """The tokens of a visual, after checking that they are as many as its plan says."""
    plan = tokenizer.plan(visual)
    rows = tokenizer.assemble(numbered(len(plan.views), tokenizer.grid), plan, MARKS)
    assert rows.shape == (plan.num_tokens, 1)
    assert tokenizer.count_tokens(plan) == plan.num_tokens
    return rows.flatten().tolist()


# One view -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square", "pad"])
def test_one_view_is_read_row_by_row_and_may_end_in_a_newline(name):
    assert assembled(build(name), picture(3, 9)) == OVERVIEW
    assert assembled(build({"name": name, "newline": True}), picture(3, 9)) == [*OVERVIEW, -1]
    assert build(name).learned_tokens == ()
    assert build({"name": name, "newline": True}).learned_tokens == ("newline",)


@pytest.mark.parametrize("name", ["square", "pad", "highres"])
def test_learned_queries_without_picture_order_can_be_one_view(name):
    settings = {"side_px": 8} if name == "highres" else {}
    assert build({"name": name, **settings}, grid=Size(1, 5), spatial=False).find_faults() == []
    assert assembled(build("square", grid=Size(1, 5), spatial=False), picture(3, 9)) == [0, 1, 2, 3, 4]


def test_a_square_view_is_squashed_or_cropped_as_the_encoder_does():
    (squashed,) = build("square", squash=True).plan(picture(8, 16)).views
    (cropped,) = build("square", squash=False).plan(picture(8, 16)).views
    assert squashed.resized == (4, 4)
    assert cropped.resized == (4, 8)
    assert cropped.window == (0, 2, 4, 4)


def test_a_padded_view_is_framed_in_a_square():
    (view,) = build("pad").plan(picture(8, 16)).views
    assert (view.framed, view.resized) == ((16, 16), (4, 4))


# AnyRes -------------------------------------------------------------------------------------------------------------


def test_a_wide_image_is_read_row_by_row_across_tiles():
    top_row, bottom_row = [100, 101, 200, 201, -1], [102, 103, 202, 203, -1]
    assert assembled(anyres(), picture(4, 8)) == OVERVIEW + top_row + bottom_row


def test_a_tall_image_is_read_tile_by_tile():
    upper, lower = [100, 101, -1, 102, 103, -1], [200, 201, -1, 202, 203, -1]
    assert assembled(anyres(), picture(8, 4)) == OVERVIEW + upper + lower


def test_rows_that_show_padding_alone_are_dropped():
    # 4x12 pixels fill the middle half of the 8x12 canvas, which is the only one.
    tokenizer = anyres(pinpoints="[(12, 8)]")
    kept = [[102, 103, 202, 203, 302, 303, -1], [400, 401, 500, 501, 600, 601, -1]]
    assert assembled(tokenizer, picture(4, 12)) == OVERVIEW + kept[0] + kept[1]


def test_without_the_base_view_only_tiles_are_encoded():
    tokenizer = anyres(base=False)
    assert len(tokenizer.plan(picture(4, 8)).views) == 2
    assert assembled(tokenizer, picture(4, 8)) == [0, 1, 100, 101, -1, 2, 3, 102, 103, -1]


def test_merging_flat_puts_one_tile_after_the_other():
    assert assembled(anyres(merge="flat"), picture(4, 8)) == [*OVERVIEW, 100, 101, 102, 103, 200, 201, 202, 203]


def test_merging_spatial_keeps_padding_and_has_no_newlines():
    assert assembled(anyres(merge="spatial"), picture(4, 8)) == [*OVERVIEW, 100, 101, 200, 201, 102, 103, 202, 203]


def test_merging_by_maximum_keeps_the_largest_of_four_cells():
    assert assembled(anyres(merge="maxpool2x2"), picture(4, 8)) == [*OVERVIEW, 103, 203]


def test_a_map_of_too_many_tiles_is_scaled_down():
    # 3x3 tiles of 2x2 cells to the cells of one tile: two lines of two, each ended.
    tokenizer = anyres(max_tiles=1)
    assert tokenizer.plan(picture(12, 12)).map_cells == (2, 2)
    flat = torch.ones(10, 2, 2, 1)
    rows = tokenizer.assemble(flat, tokenizer.plan(picture(12, 12)), MARKS)
    assert rows.flatten().tolist() == [1, 1, 1, 1, 1, 1, -1, 1, 1, -1]


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (10_000, 10_000)])
@pytest.mark.parametrize("merge", ["unpad", "spatial", "flat", "maxpool2x2"])
@pytest.mark.parametrize("max_tiles", [None, 1])
def test_pictures_of_any_shape_give_the_tokens_they_promise(size, merge, max_tiles):
    rows = assembled(anyres(merge=merge, max_tiles=max_tiles if merge == "unpad" else None), picture(*size))
    assert rows[:4] == OVERVIEW


def test_a_line_too_long_for_the_budget_keeps_one_row():
    # The original computes a height of 0 and fails.
    tokenizer = anyres(pinpoints="(1x1),...,(40x1)", max_tiles=1)
    assert tokenizer.plan(picture(4, 160)).map_cells.height == 1
    assert len(assembled(tokenizer, picture(4, 160))) > 4


def test_anyres_is_exact_in_bfloat16():
    tokenizer = anyres()
    plan = tokenizer.plan(picture(4, 8))
    rows = tokenizer.assemble(numbered(3).bfloat16(), plan, MARKS)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows.float(), tokenizer.assemble(numbered(3).bfloat16().float(), plan, MARKS))


def test_a_gradient_reaches_every_kept_cell_and_the_newline():
    tokenizer, newline = anyres(), torch.zeros(1, requires_grad=True)
    x = torch.zeros(3, 2, 2, 1, requires_grad=True)
    tokenizer.assemble(x, tokenizer.plan(picture(4, 8)), {"newline": newline}).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1] * 12
    assert newline.grad is not None
    assert newline.grad.item() == 2


def test_anyres_says_why_it_cannot_join_what_has_no_picture_order():
    lost = build("anyres", grid=Size(1, 4), spatial=False)
    assert [str(fault) for fault in lost.find_faults()] == [
        "tokenizer 'anyres' joins tiles into one image (merge='unpad'), but the features have no image order; "
        "use merge='flat' or a projector that keeps the grid."
    ]
    assert build({"name": "anyres", "merge": "flat"}, grid=Size(1, 4), spatial=False).find_faults() == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"merge": "spatial", "max_tiles": 9}, "max_tiles=9 scales the unpadded map"),
        ({"pinpoints": "[(6, 4), (8, 8)]"}, "the canvases 4x6"),
    ],
)
def test_anyres_says_which_settings_cannot_work(settings, says):
    (fault,) = anyres(**settings).find_faults()
    assert says in str(fault)


def test_anyres_needs_a_positive_limit():
    with pytest.raises(ConfigError, match="max_tiles=0"):
        anyres(max_tiles=0)


def test_anyres_max_is_anyres_with_nine_tiles():
    assert build("anyres_max").max_tiles == 9
    assert build("anyres").max_tiles is None


# Highres ------------------------------------------------------------------------------------------------------------


def test_highres_shows_every_tile_of_a_square_of_fixed_side():
    tokenizer = build({"name": "highres", "side_px": 9})
    plan = tokenizer.plan(picture(3, 9))
    assert [view.window[:2] for view in plan.views] == [(0, 0), (0, 0), (0, 4), (4, 0), (4, 4)]
    assert {view.framed for view in plan.views[1:]} == {(9, 9)}
    assert assembled(tokenizer, picture(3, 9)) == [100 * view + cell for view in range(5) for cell in range(4)]


def test_highres_needs_room_for_a_tile():
    assert "side_px=3 holds no tile of 4x4" in str(build({"name": "highres", "side_px": 3}).find_faults()[0])


# Videos --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newline", "expected"),
    [
        ("grid", [0, 1, -1, 2, 3, -1, 100, 101, -1, 102, 103, -1]),
        ("frame", [0, 1, 2, 3, -1, 100, 101, 102, 103, -1]),
        ("one_token", [0, 1, 2, 3, 100, 101, 102, 103, -1]),
        ("none", [0, 1, 2, 3, 100, 101, 102, 103]),
    ],
)
def test_newlines_of_a_clip(newline, expected):
    assert assembled(build({"name": "frames", "newline": newline}), clip(2)) == expected


def test_frames_are_pooled_before_they_are_read():
    tokenizer = build({"name": "frames", "newline": "frame"}, pooling="average")
    assert assembled(tokenizer, clip(2)) == [1.5, -1, 101.5, -1]


def test_onevision_gives_196_tokens_per_frame_and_one():
    tokenizer = build("frames", grid=Size(27, 27), pooling="bilinear")
    assert [tokenizer.plan(clip(n)).num_tokens for n in (8, 32, 500)] == [1569, 6273, 6273]


def test_views_name_the_frames_they_show():
    tokenizer = build({"name": "frames", "max_frames": 3})
    assert [view.frame for view in tokenizer.plan(clip(300)).views] == [0, 149, 299]
    assert [view.frame for view in build({"name": "frames", "fps": 1.0}).plan(clip(75, 25.0)).views] == [0, 25, 50]


def test_frames_without_picture_order_can_neither_be_pooled_nor_have_lines():
    queries = {"grid": Size(1, 4), "spatial": False}
    assert build("frames", **queries).find_faults() == []
    assert "pools neighbouring cells" in str(build("frames", pooling="bilinear", **queries).find_faults()[0])
    assert "ends each line" in str(build({"name": "frames", "newline": "grid"}, **queries).find_faults()[0])


def test_a_pooling_window_larger_than_the_grid_is_a_reason():
    assert "does not fit in a grid of 1x1" in str(build("frames", grid=Size(1, 1), pooling="average").find_faults()[0])


@pytest.mark.parametrize("settings", [{"max_frames": 0}, {"fps": 0.0}])
def test_a_clip_needs_frames(settings):
    with pytest.raises(ConfigError, match="frames"):
        build({"name": "frames", **settings})


# Router -------------------------------------------------------------------------------------------------------------


def router(**others):
    return Router(**{"image": anyres(), "multi_image": build("pad"), "video": build("frames"), **others})


@pytest.mark.parametrize(
    ("visuals", "scenarios"),
    [
        ([picture(4, 4)], ["image"]),
        ([picture(4, 4), picture(4, 4)], ["multi_image", "multi_image"]),
        ([clip(2)], ["video"]),
        ([clip(2), picture(4, 4), clip(2)], ["video", "image", "video"]),
        ([picture(4, 4), clip(2), picture(4, 4)], ["multi_image", "video", "multi_image"]),
        ([], []),
    ],
)
def test_visuals_are_routed_by_the_whole_conversation(visuals, scenarios):
    plans = router().plan(visuals)
    assert [routed.scenario for routed in plans] == scenarios
    assert all(
        routed == RoutedPlan(routed.scenario, router().select_tokenizer(routed.scenario).plan(visual))
        for routed, visual in zip(plans, visuals, strict=True)
    )


def test_plans_travel_between_processes_unchanged():
    plans = router().plan([picture(5, 9), clip(3)])
    assert pickle.loads(pickle.dumps(plans)) == plans


def test_a_router_knows_every_mark_once():
    assert router().learned_tokens == ("newline",)
    assert router(image=build("square"), video=build({"name": "frames", "newline": "none"})).learned_tokens == ()


def test_a_tokenizer_in_the_wrong_place_is_a_reason():
    assert router().find_faults() == []
    assert [str(fault) for fault in router(video=build("pad"), image=build("frames")).find_faults()] == [
        "image: Frames does not serve this scenario, only video; choose another tokenizer.",
        "video: OneView does not serve this scenario, only image, multi_image; choose another tokenizer.",
    ]


def test_reasons_name_the_scenario():
    (fault,) = router(multi_image=anyres(merge="flat", max_tiles=2)).find_faults()
    assert str(fault).startswith("multi_image: tokenizer 'anyres': max_tiles=2")


def test_a_visual_without_pixels_is_named():
    with pytest.raises(DataError, match=r"visual 2 \(image\) is 0x9 pixels"):
        router().plan([picture(1, 1), picture(0, 9)])


def test_rows_follow_the_axes_of_any_channel_count():
    tokenizer = anyres()
    plan = tokenizer.plan(picture(4, 8))
    one = numbered(3)
    two = rearrange([one[..., 0], -one[..., 0]], "c v h w -> v h w c")
    rows = tokenizer.assemble(two, plan, {"newline": torch.tensor([-1.0, 1.0])})
    assert torch.equal(rows[:, 0], -rows[:, 1])
