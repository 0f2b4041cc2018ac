"""A budget is known before any weight is read, and says what really happens."""

import json
import math
import time

import pytest
import torch

from mmblocks.batch import Batch, Packing
from mmblocks.cli.plan import format_budget
from mmblocks.compat import make_flop_counter
from mmblocks.errors import ConfigError
from mmblocks.model.budget import estimate_budget, parse_visual_shape
from mmblocks.model.build import count_parameters
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.checks.limits import count_kv_bytes_per_token
from mmblocks.model.costs.flops import count_prefill_flops
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.shapes import Size, VisualShape


def image(width, height):
    return VisualShape("image", Size(height, width))


CLIP = VisualShape("video", Size(720, 1280), 900, 30.0)


@pytest.fixture(scope="module")
def router():
    return dry_build(ModelSpec(backbone="qwen2_72b")).router


@pytest.fixture(scope="module")
def onevision():
    return {bb: estimate_budget(ModelSpec(backbone=bb), [image(1000, 700)]) for bb in ("qwen2_0_5b", "qwen2_7b")}


# Known numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "views", "tokens"),
    [
        ([image(1000, 700)], [7], [4941]),
        ([image(1000, 700), image(384, 384)], [1, 1], [730, 730]),
        ([CLIP], [32], [6273]),
        ([image(1000, 700), CLIP], [7, 32], [4941, 6273]),
    ],
)
def test_onevision_takes_the_tokens_of_the_paper(router, media, views, tokens):
    routed = router.plan(media)

    assert [len(r.plan.views) for r in routed] == views
    assert [r.plan.num_tokens for r in routed] == tokens


def test_so400m_costs_what_is_published(onevision):
    budget = onevision["qwen2_0_5b"]

    assert budget.parameters["encoder"] == pytest.approx(397.7e6, rel=1e-3)
    assert budget.flops["encoder"] == pytest.approx(7 * 641.8e9, rel=1e-3)


@pytest.mark.parametrize(
    ("backbone", "body", "embedding", "linear_per_token", "head", "cache_per_token"),
    [
        ("qwen2_0_5b", 0.358e9, 151936 * 896, 0.716e9, 0.272e9, 12288),
        ("qwen2_7b", 6.526e9, 2 * 152064 * 3584, 13.05e9, 1.09e9, 57344),
    ],
)
def test_qwen2_costs_what_its_sizes_say(onevision, backbone, body, embedding, linear_per_token, head, cache_per_token):
    budget = onevision[backbone]
    tokens = 4941 + 64

    assert budget.sequence_tokens == tokens
    assert budget.parameters["backbone"] == pytest.approx(body + embedding, rel=2e-3)
    assert budget.flops["backbone"] - budget.flops["attention"] == pytest.approx(linear_per_token * tokens, rel=2e-3)
    assert budget.flops["head"] == pytest.approx(head, rel=5e-3)
    assert budget.kv_cache_bytes == cache_per_token * tokens


def test_the_largest_qwen2_has_the_parameters_and_cache_of_its_sizes():
    seen = dry_build(ModelSpec(backbone="qwen2_72b"))

    assert seen.count_parameters("backbone") == pytest.approx(70.2e9 + 2 * 152064 * 8192, rel=2e-3)
    assert count_kv_bytes_per_token(seen.backbone.config) == 327680


def test_attention_counts_in_full(onevision):
    assert onevision["qwen2_7b"].flops["attention"] == 4 * (4941 + 64) ** 2 * 3584 * 28


def test_the_projector_costs_two_products_per_cell(onevision):
    assert onevision["qwen2_0_5b"].flops["projector"] == 7 * 729 * (2 * 1152 * 896 + 2 * 896 * 896)


def test_stored_weights_take_two_bytes(tiny_spec):
    budget = estimate_budget(tiny_spec, [])

    assert budget.weight_bytes == 2 * sum(budget.parameters.values())


# Against what really runs -------------------------------------------------------------------------------------------


def batch_of(model, media, text_tokens):
    """Ids, zero pixels and plans of one conversation."""
    routed = model.router.plan(media)
    visual = sum(r.plan.num_tokens for r in routed)
    total = visual + text_tokens
    views = sum(len(r.plan.views) for r in routed)
    return Batch(
        input_ids=torch.zeros(total, dtype=torch.int64),
        position_ids=torch.arange(total),
        targets=torch.full((total,), -100),
        packing=Packing.from_lengths([total]),
        pixels=torch.zeros(views, 3, *model.encoder.view_px, dtype=torch.uint8),
        plans=routed,
        visual_positions=torch.arange(visual),
    )


@pytest.mark.parametrize("media", [[image(100, 70)], [image(100, 70), image(24, 24)], [CLIP], []])
@torch.no_grad()
def test_flops_are_those_that_a_real_prefill_makes(tiny_spec, tiny_model, media):
    batch = batch_of(tiny_model, media, text_tokens=16)
    with make_flop_counter() as counter:
        tiny_model.backbone.compute_logits(tiny_model.compute_hidden_states(batch)[-1:])

    flops = estimate_budget(tiny_spec, media, text_tokens=16).flops

    # The SDPA kernel of the CPU is not counted by torch when it is not causal; 2 % is what the field asks for.
    assert sum(n for part, n in flops.items() if part != "attention") == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_counts_are_those_of_the_real_model(tiny_spec, tiny_model):
    budget = estimate_budget(tiny_spec, [image(100, 70), CLIP])

    assert budget.parameters == {part: count_parameters(getattr(tiny_model, part)) for part in PARTS}
    assert budget.visual_tokens == sum(r.plan.num_tokens for r in tiny_model.router.plan([image(100, 70), CLIP]))


def test_work_that_depends_on_weights_is_named_not_guessed(tiny_spec):
    seen = dry_build(tiny_spec)
    seen.backbone.compute_hidden_states = lambda x, *_: x[
        x.sum() > 0
    ]  # which rows are kept is not known on the meta device

    flops, notes = count_prefill_flops(seen, 1, 8)

    assert flops["backbone"] is None
    assert "FLOPs of the backbone depend on its weights" in notes[0]


# Words and pages ----------------------------------------------------------------------------------------------------


def test_a_budget_is_plain_json(onevision):
    plain = json.loads(json.dumps(onevision["qwen2_0_5b"].to_dict()))

    assert plain["visuals"][0]["size"] == {"height": 700, "width": 1000}
    assert (plain["views"], plain["sequence_tokens"], plain["fits"]) == (7, 5005, True)


def test_the_page_names_parts_visuals_and_totals(onevision):
    page = "\n".join(format_budget(ModelSpec().to_dict(), onevision["qwen2_0_5b"], {"align": 2**31}))

    assert "training align: weights, gradients, Adam   2.0 GiB" in page
    assert "siglip_so400m_384 -> mlp" in page
    assert "1000x700" in page
    assert "5005 of 32768" in page
    assert "397.7 M" in page
    assert "58.7 MiB" in page


def test_a_conversation_that_is_too_long_is_said_to_be(tiny_spec):
    budget = estimate_budget(tiny_spec, [image(80, 60)] * 300)

    assert not budget.is_within_limit
    assert "too long: 1564 tokens, the backbone takes 1024" in "\n".join(
        format_budget(ModelSpec.from_dict(tiny_spec).to_dict(), budget, {})
    )


def test_a_plan_of_parts_that_do_not_fit_lists_every_reason(tiny_spec):
    with pytest.raises(ConfigError, match=r"(?s)cannot work:.*model\.projector.*model\.pooling"):
        estimate_budget({**tiny_spec, "projector": "identity", "pooling": {"name": "max", "stride": 9}}, [])


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("image=1000x700", VisualShape("image", Size(700, 1000))),
        ("video=1280x720@30s", VisualShape("video", Size(720, 1280), 900, 30.0)),
        ("video=640x360@2.5s@24fps", VisualShape("video", Size(360, 640), 60, 24.0)),
        ("video=640x360@0.01s", VisualShape("video", Size(360, 640), 1, 30.0)),
    ],
)
def test_media_are_written_width_by_height(word, shape):
    assert parse_visual_shape(word) == shape


@pytest.mark.parametrize(
    "word",
    ["image=1000", "image=0x5", "video=640x360", "image=10x10@3s", "video=6x6@0s", "video=6x6@1..2s", "picture=3x3"],
)
def test_other_words_are_refused_with_an_example(word):
    with pytest.raises(ConfigError, match=r"image=WIDTHxHEIGHT|numbers such as|longer than 0"):
        parse_visual_shape(word)


HOSTILE_WORDS = [
    "image=0x0",
    "image=-1x5",
    "image=nanxnan",
    "image=infx5",
    "image=999999999x999999999",
    f"image={'9' * 5000}x1",
    "video=1x1@1e9s",
    "video=1x1@1000000000s",
    "video=1x1@nans",
    "video=1x1@-1s",
    f"video=1x1@{'9' * 400}s",
    "video=1x1@5s@0fps",
    "video=1x1@5s@999999999999fps",
    f"video=1x1@5s@{'9' * 400}fps",
]


@pytest.mark.parametrize("word", HOSTILE_WORDS, ids=lambda word: word[:30])
def test_what_is_no_picture_or_clip_is_refused_in_a_line(word):
    with pytest.raises(ConfigError) as refused:
        parse_visual_shape(word)
    assert word[:20] in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "word", ["image=1000000x1", "image=1000000x1000000", "video=1x1@30000000s", "video=9x9@.001s@.001fps"]
)
def test_the_largest_and_thinnest_media_are_planned_at_once(tiny_spec, word):
    started = time.process_time()
    budget = estimate_budget(tiny_spec, [parse_visual_shape(word)])
    assert 0 < budget.visual_tokens < budget.max_tokens
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "shape",
    [
        VisualShape("image", Size(0, 5)),
        VisualShape("image", Size(-1, 5)),
        VisualShape("image", Size(math.nan, 5)),  # type: ignore[arg-type]
        VisualShape("image", Size(5, 10**20)),
        VisualShape("video", Size(5, 5), 0),
        VisualShape("video", Size(5, 5), 10**20),
        VisualShape("video", Size(5, 5), 9, math.nan),
        VisualShape("video", Size(5, 5), 9, 0.0),
        VisualShape("video", Size(5, 5), 9, math.inf),
    ],
    ids=str,
)
def test_shapes_that_cannot_be_are_refused_before_they_are_planned(tiny_spec, shape):
    with pytest.raises(ConfigError, match=r"each side has|a video"):
        estimate_budget(tiny_spec, [shape])


@pytest.mark.parametrize("text_tokens", [-1, 10**20, math.nan, True, "5", None])
def test_text_has_a_number_of_tokens(tiny_spec, text_tokens):
    with pytest.raises(ConfigError, match="text_tokens="):
        estimate_budget(tiny_spec, [], text_tokens=text_tokens)
