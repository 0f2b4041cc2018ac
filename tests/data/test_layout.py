"""Plans in integers: a batch's layout says which features its visual rows are made of, and where they stand."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks import build
from mmblocks.batch import IGNORE, Batch, GatherTable
from mmblocks.components import apply_before_projector, poolings, tokenizers
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.layout import GatherLayoutBuilder, join_layouts, map_batch_views, shifted
from mmblocks.data.sample.processor import Processor
from mmblocks.shapes import Size, VisualShape
from mmblocks.tokenizers.router import Router

CELLS = Size(2, 2)


def made(spec, pooling="none"):
    beside = {"view_px": Size(4, 4), "grid": CELLS, "spatial": True, "squash": True}
    return tokenizers.build(spec, **beside, pooling=poolings.build(pooling))


def layout_of(*visuals, image="square", multi_image="pad_newline", video="frames", pooling="none", **how):
    router = Router(made(image, pooling), made(multi_image, pooling), made(video, pooling))
    plans = router.plan(visuals)
    rows = torch.arange(sum(routed.plan.num_tokens for routed in plans))
    layouts = GatherLayoutBuilder(CELLS, how.get("per_token", True), how.get("learned_tokens", router.learned_tokens))
    return layouts.make_sample_layout(plans, 10 + rows, router)


def picture(height, width):
    return VisualShape("image", Size(height, width))


def clip(frames):
    return VisualShape("video", Size(4, 4), frames)


def plain(taps):
    """Rows of cells without those of weight 0."""
    pairs = zip(taps.rows.tolist(), taps.weights.tolist(), strict=True)
    return [[cell for cell, weight in zip(cells, weights, strict=True) if weight] for cells, weights in pairs]


# One sample ---------------------------------------------------------------------------------------------------------


def test_a_view_is_its_cells_in_order():
    layout = layout_of(picture(3, 9))
    assert layout.cell_table is None
    assert plain(layout.token_table) == [[0], [1], [2], [3]]
    assert layout.token_table.size == 4
    assert layout.positions.tolist() == [10, 11, 12, 13]
    assert layout.learned_token_ids.numel() == layout.learned_token_positions.numel() == 0


def test_marks_have_their_number_in_the_model_and_their_places_between_the_rows():
    layout = layout_of(clip(2), video={"name": "frames", "newline": "frame"}, learned_tokens=("other", "newline"))
    assert layout.learned_token_ids.tolist() == [1, 1]
    assert layout.learned_token_positions.tolist() == [14, 19]
    assert layout.positions.tolist() == [10, 11, 12, 13, 15, 16, 17, 18]
    assert plain(layout.token_table) == [[n] for n in range(8)]


def test_visuals_follow_each_other_in_cells_and_in_places():
    layout = layout_of(picture(4, 4), picture(4, 4))
    assert layout.token_table.size == 8
    assert plain(layout.token_table) == [[n] for n in range(8)]
    assert layout.positions.tolist() == [10, 11, 12, 13, 15, 16, 17, 18]
    assert layout.learned_token_positions.tolist() == [14, 19]


def test_pooling_is_four_cells_to_a_row():
    layout = layout_of(clip(2), video={"name": "frames", "newline": "none"}, pooling="average")
    assert plain(layout.token_table) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert layout.token_table.weights.tolist() == [[0.25] * 4] * 2
    assert layout.token_table.weights.dtype == torch.float32


PADDED = {"name": "anyres", "pinpoints": "[(12, 8)]", "base": False}


def test_cells_that_no_row_reads_do_not_enter_a_projector_that_works_on_each_by_itself():
    # 4x12 pixels fill the middle half of the 8x12 canvas: lines 1 and 2 of 4, of 3x2 tiles of 2x2 cells.
    layout = layout_of(picture(4, 12), image=PADDED)
    assert plain(layout.cell_table) == [[c] for c in (2, 3, 6, 7, 10, 11, 12, 13, 16, 17, 20, 21)]
    assert layout.cell_table.size == 24
    assert plain(layout.token_table) == [[n] for n in range(12)]
    assert layout.token_table.size == 12


def test_a_projector_that_sees_neighbours_is_given_every_cell():
    layout = layout_of(picture(4, 12), image=PADDED, per_token=False)
    assert layout.cell_table is None
    assert plain(layout.token_table) == [[c] for c in (2, 3, 6, 7, 10, 11, 12, 13, 16, 17, 20, 21)]
    assert layout.token_table.size == 24


POOLED_FIRST = {"name": "frames", "newline": "one_token", "pool_at": "features"}


def test_what_is_pooled_before_the_projector_is_what_enters_it():
    layout = layout_of(clip(2), video=POOLED_FIRST, pooling="average")
    assert plain(layout.cell_table) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert layout.cell_table.size == 8
    assert plain(layout.token_table) == [[0], [1]]
    assert layout.token_table.size == 2
    assert layout_of(clip(2), video=POOLED_FIRST, pooling="average", per_token=False) is None


def test_beside_it_another_visual_enters_as_it_is():
    layout = layout_of(clip(1), picture(3, 3), video=POOLED_FIRST, pooling="average")
    assert plain(layout.cell_table) == [[0, 1, 2, 3], [4], [5], [6], [7]]
    assert plain(layout.token_table) == [[0], [1], [2], [3], [4]]
    assert layout.positions.tolist() == [10, 12, 13, 14, 15]


def test_a_repeated_frame_is_one_picture():
    forced = {"name": "frames", "newline": "none", "max_frames": 4, "force": True}
    layout = layout_of(clip(2), video=forced)  # frames 0, 1, 2 and 3 of 3 gaps: 0, 0, 0, 1
    assert layout.token_table.size == 8
    assert plain(layout.token_table) == [[n] for n in [0, 1, 2, 3] * 3 + [4, 5, 6, 7]]


def test_the_only_tile_of_a_square_picture_is_its_base_view():
    tokenizer = made({"name": "anyres", "pinpoints": "(1x1),...,(2x2)"})
    plan = tokenizer.plan(picture(4, 4))
    assert (len(plan.views), len(plan.unique_views)) == (2, 1)
    layout = layout_of(picture(4, 4), image={"name": "anyres", "pinpoints": "(1x1),...,(2x2)"})
    assert plain(layout.token_table) == [[n] for n in [0, 1, 2, 3] * 2]


def test_a_picture_that_keeps_no_row_reads_no_cell():
    layout = layout_of(picture(1, 4000), image={**PADDED, "pinpoints": "[(8, 8)]"})
    assert layout.token_table.size == len(layout.token_table.rows) == len(layout.cell_table.rows) == 0
    assert layout.cell_table.size == 16


def test_nothing_shown_and_what_is_not_linear_have_no_layout():
    assert layout_of() is None
    assert layout_of(clip(2), pooling="max") is None
    assert layout_of(picture(3, 3), clip(2), pooling="max") is None


def test_layouts_join_with_room_for_the_most_cells():
    one = layout_of(picture(4, 12), image=PADDED)
    other = layout_of(clip(1), video={"name": "frames", "newline": "none"}, pooling="average")
    both = join_layouts([one, shifted(other, 100)])
    assert plain(both.cell_table) == [*plain(one.cell_table), [24], [25], [26], [27]]
    assert plain(both.token_table) == [*plain(one.token_table), [12, 13, 14, 15]]
    assert both.token_table.rows.shape == (13, 4)
    assert (both.cell_table.size, both.token_table.size) == (28, 16)
    assert both.positions.tolist() == [*one.positions.tolist(), 110]


# Batches of a model -------------------------------------------------------------------------------------------------


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def said(answer, *visuals):
    content = [shown(v) for v in visuals]
    user = {"role": "user", "content": [*content, {"type": "text", "text": "What colour is the circle?"}]}
    return Conversation.from_messages([user, {"role": "assistant", "content": answer}])


def shown(array):
    if array.ndim == 4:
        return {"type": "video", "video": array}
    return {"type": "image", "image": Image.fromarray(array)}


CONVERSATIONS = [
    said("red", noise(0, 40, 60, 3)),
    said("two"),
    said("the second image", noise(1, 24, 24, 3), noise(2, 70, 30, 3)),
    said("the circle", noise(3, 2, 20, 30, 3)),
    said("red", noise(4, 20, 20, 3)),
    said("blue", noise(5, 90, 200, 3)),
]
LEARNED_TILES = {"name": "tiles_marked", "marking": "learned", "side_tiles": 2}
FORCED = {"name": "frames", "max_frames": 4, "force": True}
CHANGES = {
    "as_it_is": {},
    "frames_repeat": {"tokenizer": {"video": FORCED}},
    "pooled_first": {"tokenizer": {"video": {**FORCED, "pool_at": "features", "newline": "grid"}}},
    "slow_fast": {"tokenizer": {"video": {"name": "slow_fast", "max_frames": 5, "every": 2}, "image": LEARNED_TILES}},
    "antialiased": {"pooling": "bilinear_antialiased", "projector": "linear"},
    "grid_changes": {"projector": "pixel_shuffle_mlp"},
    "neighbours": {"projector": "ldp"},
    "shrunk": {"tokenizer": {"image": {"name": "anyres", "pinpoints": "(1x1),...,(3x3)", "max_tiles": 1}}},
}


def changed(tiny_spec, change):
    chosen = {**tiny_spec["tokenizer"], **change.get("tokenizer", {})}
    return build({**tiny_spec, **change, "tokenizer": chosen}, seed=0).double().eval()


def batch_of(model, conversations=CONVERSATIONS):
    processor = Processor.from_model(model)
    return collate([processor.make_training_sample(conversation) for conversation in conversations])


def prompts_of(model):
    processor = Processor.from_model(model)
    return collate([processor.make_prompt_sample(Conversation(talk.messages[:1])) for talk in CONVERSATIONS])


def gathered(x, taps):
    assert len(x) == taps.size
    return (x[taps.rows] * taps.weights.to(x)[..., None]).sum(1)


def rows_by_layout(model, batch):
    """What a layout says the visual rows are, each in its place, with zeros in place of text."""
    layout, x = batch.layout, model.encoder(model.normalise_pixels(batch.pixels))
    cells = x if layout.cell_table is None else gathered(x.flatten(0, 2), layout.cell_table)
    body = model.projector.body(cells)
    out = body.new_zeros(batch.num_tokens, model.backbone.dim)
    out[layout.positions] = model.projector.head(gathered(body.flatten(0, -2), layout.token_table))
    out[layout.learned_token_positions] = torch.stack(
        [model.learned_tokens[mark] for mark in model.router.learned_tokens]
    )[layout.learned_token_ids]
    return out


def rows_by_assembly(model, batch):
    """The same, visual by visual, projected before anything is pooled or left out."""
    every = batch.with_all_views()
    features = model.encoder(model.normalise_pixels(every.pixels)).split([len(r.plan.views) for r in batch.plans])
    rows = []
    for routed, x in zip(batch.plans, features, strict=True):
        tokenizer = model.router.select_tokenizer(routed.scenario)
        projected = model.projector(apply_before_projector(tokenizer, x))
        rows.append(tokenizer.assemble(projected, routed.plan, dict(model.learned_tokens.items())))
    out = rows[0].new_zeros(batch.num_tokens, model.backbone.dim)
    out[batch.visual_positions] = torch.cat(rows)
    return out


@pytest.mark.parametrize("change", list(CHANGES))
@torch.no_grad()
def test_a_mixed_batch_is_laid_out_as_its_visuals_are_assembled_one_by_one(tiny_spec, change):
    model = changed(tiny_spec, CHANGES[change])
    batch = batch_of(model)
    assert {routed.scenario for routed in batch.plans} == {"image", "multi_image", "video"}
    places = torch.cat([batch.layout.positions, batch.layout.learned_token_positions])
    assert places.sort().values.equal(batch.visual_positions)
    # weights are float32, the features float64
    torch.testing.assert_close(rows_by_layout(model, batch), rows_by_assembly(model, batch), rtol=0, atol=1e-6)


def test_equal_views_are_read_once(tiny_spec):
    batch = batch_of(changed(tiny_spec, CHANGES["frames_repeat"]), CONVERSATIONS[3:5])
    # 4 frames of 2, then a square image, whose only tile is its base view
    assert [len(routed.plan.views) for routed in batch.plans] == [4, 2]
    assert batch.views.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.num_views == len(batch.pixels) == 3
    assert batch.layout.token_table.size == (batch.layout.cell_table or batch.layout.token_table).size


def test_with_all_views_every_view_is_a_picture(tiny_spec):
    batch = batch_of(changed(tiny_spec, CHANGES["frames_repeat"]), CONVERSATIONS[3:5])
    every = batch.with_all_views()
    assert every.pixels.equal(batch.pixels[[0, 0, 0, 1, 2, 2]])
    assert every.views is every.layout is None
    assert map_batch_views(batch_of(build(tiny_spec), CONVERSATIONS[:1]).plans) is None


def test_only_batches_that_are_learned_from_have_their_taps_turned_round(tiny_model):
    learned, asked = batch_of(tiny_model), prompts_of(tiny_model)
    for taps in (learned.layout.token_table, learned.layout.cell_table):
        assert isinstance(taps.transpose, GatherTable)
        assert taps.transpose.rows.shape[0] == taps.size
        assert taps.transpose.size == len(taps.rows)
    assert asked.layout.token_table.transpose is asked.layout.cell_table.transpose is None
    assert asked.precomputed_target_rows.counts == (0,) * len(CONVERSATIONS)


def test_labelled_rows_are_those_with_a_target(tiny_model):
    batch = batch_of(tiny_model)
    assert batch.precomputed_target_rows.index.tolist() == (batch.targets != IGNORE).nonzero().flatten().tolist()
    by_sequence = (batch.targets != IGNORE).split(batch.packing.lengths)
    assert list(batch.precomputed_target_rows.counts) == [int(part.sum()) for part in by_sequence]
    assert batch.num_labelled == replace(batch, precomputed_target_rows=None).num_labelled > 0
    assert Batch.make_empty(Size(4, 4)).num_labelled == 0


def test_text_alone_and_visuals_that_do_not_lower_have_no_layout(tiny_spec):
    model = build({**tiny_spec, "pooling": "max"})
    assert batch_of(model, CONVERSATIONS[1:2]).layout is None
    assert batch_of(model, CONVERSATIONS[:3]).layout is not None
    assert batch_of(model, CONVERSATIONS).layout is None


def test_features_that_were_kept_are_laid_out_alike(tiny_model):
    class Kept:
        def read(self, visuals, plans):
            pictures = sum(len(routed.plan.unique_views) for routed in plans)
            return torch.zeros(pictures, *tiny_model.encoder.grid, tiny_model.encoder.dim)

    processor = replace(Processor.from_model(tiny_model), features=Kept())
    batch = collate([processor.make_training_sample(c) for c in CONVERSATIONS])
    assert batch.features.flatten(0, 2).shape[0] == batch.layout.cell_table.size
    assert batch.layout.token_table.rows.equal(batch_of(tiny_model).layout.token_table.rows)


def test_layouts_travel(tiny_model):
    processor = pickle.loads(pickle.dumps(Processor.from_model(tiny_model)))
    sample = pickle.loads(pickle.dumps(processor.make_training_sample(CONVERSATIONS[0])))
    batch = collate([sample])
    assert batch.layout.token_table.rows.equal(batch_of(tiny_model, CONVERSATIONS[:1]).layout.token_table.rows)
    away = batch.to("meta")
    parts = (away.layout.cell_table, away.layout.token_table, away.layout.token_table.transpose)
    tensors = [
        away.layout.positions,
        away.layout.learned_token_ids,
        away.layout.learned_token_positions,
        away.precomputed_target_rows.index,
    ]
    assert all(t.is_meta for t in [*tensors, *(t for part in parts for t in (part.rows, part.weights))])


@torch.inference_mode()
def test_what_is_lowered_while_nothing_is_learned_can_be_learned_from_later(tiny_model):
    poolings_seen = batch_of(tiny_model, CONVERSATIONS[3:4])
    assert poolings_seen.layout.token_table.weights.is_inference()
    with torch.inference_mode(False):
        assert not batch_of(tiny_model, CONVERSATIONS[3:4]).layout.token_table.weights.is_inference()


def test_lowering_does_not_depend_on_the_default_device():
    with torch.device("meta"):
        tokenizer = made({"name": "frames", "max_frames": 3}, "bilinear_antialiased")
        assert not tokenizer.lower_plan(tokenizer.plan(clip(3))).rows.is_meta
