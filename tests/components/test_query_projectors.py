"""Projectors that put learned queries in the place of cells: their manual."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmblocks.batch import Instructions
from mmblocks.components import InstructedProjector, has_capability, projectors
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size

ROWS = ["qformer", "instruct_qformer", "perceiver", "idefics2_perceiver"]
GRIDS = ["c_abstractor", "d_abstractor", "sva"]
SQUARE, LARGE = Size(4, 4), Size(24, 24)


def tiny(name, grid=SQUARE, in_dim=8, out_dim=8, **settings):
    spec = {"name": name, **projectors[name].tiny, **settings}
    return projectors.build(spec, in_dim=in_dim, out_dim=out_dim, grid=grid).eval()


def published(name, in_dim, out_dim, grid=LARGE, **settings):
    with torch.device("meta"):
        return projectors.build({"name": name, **settings}, in_dim=in_dim, out_dim=out_dim, grid=grid)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# A row of queries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_queries_are_a_row_without_a_pictures_order(name):
    projector = tiny(name)
    assert not projector.spatial
    assert projector.out_grid(Size(24, 24)) == Size(1, 4)
    assert projector(torch.randn(2, 5, 7, 8)).shape == (2, 1, 4, 8)


@pytest.mark.parametrize("name", ROWS)
def test_fresh_queries_differ_so_that_they_can_part(name):
    rows = tiny(name)(torch.randn(1, 4, 4, 8))[0, 0]
    apart = torch.pdist(rows.detach())
    assert apart.min() > 1e-3


@pytest.mark.parametrize("name", ["qformer", "perceiver", "idefics2_perceiver"])
def test_queries_do_not_know_the_order_of_cells(name):
    projector, x = tiny(name), torch.randn(2, 4, 4, 8)
    torch.testing.assert_close(projector(x), projector(x.flip(1, 2)), rtol=0, atol=1e-5)  # sums in another order


def test_cross_every_says_which_blocks_see_the_picture():
    layers = tiny("qformer_llava_next", depth=7).body.qformer.encoder.layer
    assert [i for i, layer in enumerate(layers) if layer.has_cross_attention] == [0, 3, 6]


def test_the_qformers_have_the_size_of_the_papers():
    """BLIP-2 counts 188M: BERT base with its words, cross-attention in every other block, queries with their own MLP."""
    attention = 4 * (768 * 768 + 768) + 2 * 768
    cross = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    mlp = 2 * 768 * 3072 + 3072 + 768 + 2 * 768
    vision = 32 * 768 + 2 * 1408 + 2 * 768
    plain, instructed = (published(name, 1408, 2560).body for name in ("qformer", "instruct_qformer"))

    assert parameters(plain) == 12 * (attention + mlp) + 6 * cross + vision
    assert parameters(instructed) == parameters(plain) + 11 * mlp + (30523 + 512) * 768
    assert parameters(instructed) + mlp == pytest.approx(188e6, rel=0.015)  # the paper's also has heads for pretraining


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("qformer", {"queries": 0, "depth": 0}, "queries=0, depth=0; write queries >= 1 and depth >= 1"),
        ("qformer", {"heads": 3}, "dim=16 cannot be shared by heads=3"),
        ("instruct_qformer", {"max_text_tokens": 0}, "max_text_tokens=0; write max_text_tokens >= 1"),
        ("idefics2_perceiver", {"kv_heads": 3}, "heads=2 cannot be shared out among kv_heads=3"),
        ("c_abstractor", {"queries": 6}, "queries=6 makes no square grid; write 4 or 9"),
        ("d_abstractor", {"heads": 5}, "dim=16 cannot be shared by heads=5"),
        ("sva", {"splits": [3, 4]}, r"splits=\[3, 4\] make 7 channels and the encoder gives 8"),
        ("sva", {"splits": [3, 5]}, r"windows=\[2\] for 2 sources"),
        ("sva", {"groups": [9]}, "groups of 3x3 queries cannot share out a source of 4x4 cells"),
    ],
)
def test_sizes_that_make_no_projector_are_refused(name, settings, match):
    with pytest.raises(ConfigError, match=match):
        tiny(name, **settings)


# The question beside the queries --------------------------------------------------------------------------------------


def asked(*questions):
    return Instructions.from_ids([torch.tensor(ids, dtype=torch.int64) for ids in questions])


def test_instructions_are_filled_up_behind_and_masked():
    rows = asked([5, 6, 7], [], [8])
    assert rows.ids.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert rows.mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert asked().ids.shape == (0, 0)


def test_only_the_instructed_projector_needs_text():
    assert [name for name in (*ROWS, *GRIDS, "mlp") if has_capability(tiny(name, Size(4, 4)), InstructedProjector)] == [
        "instruct_qformer"
    ]


@torch.no_grad()
def test_the_words_and_their_order_decide_what_is_seen():
    projector, x = tiny("instruct_qformer"), torch.randn(1, 4, 4, 8)
    seen = [projector(x, asked(question)) for question in ([5, 6], [6, 5], [5, 7], [])]
    assert all((a - b).abs().max() > 1e-6 for i, a in enumerate(seen) for b in seen[:i])
    assert torch.equal(seen[-1], projector(x))


@torch.no_grad()
def test_a_longer_question_beside_it_changes_nothing():
    projector, x = tiny("instruct_qformer"), torch.randn(2, 4, 4, 8)
    alone = projector(x[:1], asked([5, 6]))
    beside = projector(x, asked([5, 6], [9] * 20))[:1]
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-6)  # masked keys weigh nothing; sums run in another order


def test_a_long_question_loses_its_beginning():
    tokenizer = tiny("instruct_qformer").text_tokenizer
    whole = tokenizer("What colour is the circle?")["input_ids"]
    assert tokenizer("What colour is the circle?", truncation=True, max_length=3)["input_ids"] == whole[-3:]


def test_a_tokenizer_of_more_words_than_are_embedded_is_refused():
    with pytest.raises(ConfigError, match=r"vocab_size=9 are embedded; write vocab_size=\d+ or more"):
        _ = tiny("instruct_qformer", vocab_size=9).text_tokenizer


# A smaller image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_abstractors_give_a_square_grid_in_the_pictures_order(name):
    projector = tiny(name, Size(3, 6))
    assert projector.spatial
    assert projector.out_grid(Size(3, 6)) == Size(2, 2)
    assert projector(torch.randn(2, 3, 6, 8)).shape == (2, 2, 2, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("half", ["left", "top"])
def test_what_changes_in_half_of_the_picture_shows_most_in_that_half(name, half):
    projector, x = tiny(name, in_dim=16), torch.randn(32, 4, 4, 16)
    changed = x.clone()
    part = changed[:, :, :2] if half == "left" else changed[:, :2]
    part.copy_(torch.randn_like(part))

    moved = (projector.body(changed) - projector.body(x)).norm(dim=-1).mean(0)

    near, far = moved.sum(0 if half == "left" else 1)
    assert near > far


@pytest.mark.parametrize("name", ["c_abstractor", "d_abstractor"])
def test_an_abstractor_knows_the_positions_of_one_grid(name):
    with pytest.raises(ConfigError, match="built for a grid of 4x4 cells, not 3x3"):
        tiny(name, Size(4, 4)).out_grid(Size(3, 3))


def test_the_c_abstractor_has_the_layers_of_the_paper():
    """Depth 3, width 1024, a readout of 2 layers; RegNet blocks with depthwise 3x3 and a squeeze of in_dim / 4."""
    norms = 3 * 2 * 1024
    squeeze = 2 * 1024 * 256 + 256 + 1024
    block = 1024 * 1024 * 2 + 9 * 1024 + norms + squeeze
    readout = 1024 * 4096 + 4096

    body = published("c_abstractor", 1024, 4096).body

    assert parameters(body) == 576 * 1024 + 6 * block + readout
    assert parameters(published("c_abstractor", 1024, 4096, mlp_depth=1).body) == 576 * 1024 + 6 * block
    assert published("c_abstractor", 1024, 4096).out_grid(Size(24, 24)) == Size(12, 12)


def test_the_queries_of_the_d_abstractor_start_at_their_own_places():
    points = tiny("d_abstractor", Size(4, 8), queries=4).body.reference_points[0] * torch.tensor(
        [8, 4]
    )  # x, y in cells
    assert points.tolist() == [[0.5, 0.5], [7.5, 0.5], [0.5, 3.5], [7.5, 3.5]]


def bilinear(picture, x, y):
    """(rows, columns, d) read at a point in cells, whose first cell's centre is (0, 0); nothing lies outside."""
    rows, columns, _ = picture.shape
    left, top = math.floor(x), math.floor(y)
    total = torch.zeros(picture.shape[-1])
    for column, row in [(left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)]:
        if 0 <= column < columns and 0 <= row < rows:
            total = total + (1 - abs(x - column)) * (1 - abs(y - row)) * picture[row, column]
    return total


def sampled(attention, queries, points, picture, heads):
    """Deformable attention by hand: every query and head reads a few places of its own and weighs them."""
    rows, columns, _ = picture.shape
    values = attention.value_proj(picture).view(rows, columns, heads, -1)
    offsets = attention.sampling_offsets(queries).view(len(queries), heads, -1, 2)
    weights = attention.attention_weights(queries).view(len(queries), heads, -1).softmax(-1)
    read = [
        [
            sum(
                w * bilinear(values[:, :, head], x * columns - 0.5 + dx, y * rows - 0.5 + dy)
                for w, (dx, dy) in zip(weights[q, head], offsets[q, head].tolist(), strict=True)
            )
            for head in range(heads)
        ]
        for q, (x, y) in enumerate(points.tolist())
    ]
    return attention.output_proj(torch.stack([torch.cat(row) for row in read]))


@torch.no_grad()
def test_the_d_abstractor_samples_the_picture_where_its_queries_look():
    projector, x = tiny("d_abstractor", Size(3, 5), in_dim=6), torch.randn(1, 3, 5, 6)
    body, layer = projector.body, projector.body.decoder.layers[0]
    for p in projector.parameters():
        p.add_(0.1 * torch.randn_like(p))
    picture = body.input_proj(x[0]) + body.v_pos_emb.view(3, 5, 16)
    where = F.adaptive_avg_pool2d(picture.permute(2, 0, 1), (2, 2)).flatten(1).T
    what = body.query_position_embeddings.weight

    q, k, v = layer.self_attn.q_proj(what + where), layer.self_attn.k_proj(what + where), layer.self_attn.v_proj(what)
    mixed = F.scaled_dot_product_attention(*(t.view(4, 2, 8).transpose(0, 1) for t in (q, k, v)))
    own = layer.self_attn_layer_norm(what + layer.self_attn.o_proj(mixed.transpose(0, 1).reshape(4, 16)))
    seen = sampled(layer.encoder_attn, own + where, body.reference_points[0], picture, heads=2)
    told = layer.encoder_attn_layer_norm(own + seen)
    want = layer.final_layer_norm(told + layer.mlp.fc2(layer.mlp.fc1(told).relu()))

    torch.testing.assert_close(body(x)[0].flatten(0, 1), want, rtol=0, atol=1e-5)  # fp32: sums in another order


# Windows of several sources -------------------------------------------------------------------------------------------


def aggregated(body, x, side, windows):
    """What one group of queries reads from one view, query by query and layer by layer."""
    sources = [
        project(F.interpolate(part.permute(2, 0, 1)[None], (side * w, side * w), mode="bilinear")[0].permute(1, 2, 0))
        for part, project, w in zip(x.split(body.splits, -1), body.mm_projector_aux, windows, strict=True)
    ]
    context = sources[0].mean((0, 1))
    grid = torch.empty(side, side, len(context))
    for row in range(side):
        for column in range(side):
            query = body.vision_query[0]
            for layer in body.vision_sampler[0]:
                told = layer.proj_in(torch.cat([query, layer.proj_context(context)]))
                keys, values = [], []
                for i, (source, w) in enumerate(zip(sources, windows, strict=True)):
                    cells = source[row * w : (row + 1) * w, column * w : (column + 1) * w].flatten(0, 1)
                    cells = cells + layer.pos_embed[str(i)] if w > 1 else cells
                    keys.append(layer.cross_attn.k_proj[i](cells))
                    values.append(layer.cross_attn.v_proj[i](cells))
                heads = layer.cross_attn.heads
                q, k, v = (
                    t.view(-1, heads, t.shape[-1] // heads).transpose(0, 1)
                    for t in (layer.cross_attn.q_proj(told), torch.cat(keys), torch.cat(values))
                )
                weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
                read = layer.cross_attn.o_proj((weights @ v).transpose(0, 1).flatten())
                query = query + layer.proj_out(layer.norm(told + read))
            grid[row, column] = query
    return body.mm_projector(grid)


@torch.no_grad()
@pytest.mark.parametrize(
    ("grid", "splits", "windows"),
    [(Size(4, 4), [], [2]), (Size(4, 4), [5, 3], [2, 1]), (Size(3, 5), [2, 2, 4], [1, 2, 3])],
)
def test_every_query_reads_its_windows_of_all_sources(grid, splits, windows):
    projector, x = tiny("sva", grid, splits=splits, windows=windows), torch.randn(2, *grid, 8)
    want = torch.stack([aggregated(projector.body, view, 2, windows) for view in x])
    torch.testing.assert_close(projector.body(x), want, rtol=0, atol=1e-5)  # fp32: sums in another order


@torch.no_grad()
def test_cells_of_another_window_are_not_seen():
    """Exchanging two cells keeps the mean, all that a query knows of other windows."""
    projector, x = tiny("sva", Size(4, 4)), torch.randn(1, 4, 4, 8)
    exchanged = x.clone()
    exchanged[0, 3, 2], exchanged[0, 3, 3] = x[0, 3, 3], x[0, 3, 2]

    moved = (projector(exchanged) - projector(x)).abs().amax(-1)[0]

    assert moved[1, 1] > 1e-4
    assert moved.flatten()[:3].max() < 1e-5


def test_groups_of_queries_are_joined_at_the_query_grid():
    projector = tiny("sva", Size(4, 4), queries=16, windows=[2], groups=[16, 4])
    assert projector(torch.randn(2, 4, 4, 8)).shape == (2, 4, 4, 8)
    assert projector.body.mm_projector[0].in_features == 2 * 16
    assert [len(layers[0].pos_embed["0"]) for layers in projector.body.vision_sampler] == [4, 16]


def test_windows_come_from_the_grid_unless_they_are_given():
    assert published("sva", 64, 32, Size(27, 27)).body.maps == (24,)
    assert published("sva", 64, 32, Size(24, 48), queries=144).body.maps == (36,)
    assert published("sva", 64, 32, splits=[16, 48], windows=[1, 4]).body.maps == (24, 96)


def test_the_aggregator_has_the_layers_of_cambrian():
    """Four encoders at 24, 24, 24 and 96 cells a side, width 1024, three layers, one group of 576 queries."""
    widths, dim, out = [1152, 1024, 1536, 3072], 1024, 4096
    sources = sum(width * dim + dim + dim * dim + dim + 2 * dim for width in widths)
    norms = dim * 2 * 9  # before the query, four keys and four values
    layer = 3 * dim * dim + norms + 10 * dim * dim + 2 * dim + 2 * dim * dim + 16 * dim

    body = published("sva", sum(widths), out, splits=widths, windows=[1, 1, 1, 4]).body

    assert parameters(body) == sources + 3 * layer + dim + dim * out + out
