"""Other parts for a model that stands: what is not named stays bit for bit, and every parameter is accounted for."""

import json

import pytest
import torch
from transformers import AutoTokenizer, SiglipVisionConfig, SiglipVisionModel

import mmblocks
from mmblocks.assets import resolve_source
from mmblocks.errors import ConfigError
from mmblocks.model.build import count_parameters
from mmblocks.model.swapping.swap import save_swap_result, swap
from mmblocks.model.swapping.transplant import extend_vocabulary, make_position_resize
from mmblocks.shapes import Size, VisualShape

VIT = {"patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
SIGLIP = {"name": "siglip", "image_px": 28, **VIT}
PARTS = ("encoder", "projector", "learned_tokens", "backbone")


@pytest.fixture
def siglip_model(tiny_spec):
    return mmblocks.build({**tiny_spec, "encoder": SIGLIP}, seed=0).eval()


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def kept_parts(before, after):
    return {part for part in PARTS if same(getattr(before, part), getattr(after, part))}


def fates(swapped, part):
    return {line.fate for line in swapped.ledger.lines if line.part == part}


# What stays ---------------------------------------------------------------------------------------------------------


def test_a_new_projector_leaves_all_other_parts_bit_for_bit(tiny_model):
    swapped = swap(tiny_model, {"projector": "gated"}, seed=1)
    assert type(swapped.model.projector).__name__ == "Gated"
    assert kept_parts(tiny_model, swapped.model) == {"encoder", "learned_tokens", "backbone"}
    assert swapped.model.spec.to_dict()["projector"]["name"] == "gated"


def test_there_and_back_through_files_is_bit_equal_in_what_was_not_named(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "a")
    there = swap(mmblocks.load(tmp_path / "a"), {"projector": "gated"}, seed=1)
    save_swap_result(there, tmp_path / "b", tmp_path / "a")
    back = swap(mmblocks.load(tmp_path / "b"), {"projector": "mlp"}, seed=2)
    save_swap_result(back, tmp_path / "c", tmp_path / "b")
    again = mmblocks.load(tmp_path / "c")
    assert kept_parts(tiny_model, again) == {"encoder", "learned_tokens", "backbone"}
    assert again.spec.to_dict() == tiny_model.spec.to_dict()
    assert [list(s["changes"].items()) for s in json.loads((tmp_path / "c/swap.json").read_text())["swaps"]] == [
        [("projector", "gated")],
        [("projector", "mlp")],
    ]


def test_the_model_that_is_given_is_not_changed(tiny_model):
    before, spec = {k: t.clone() for k, t in tiny_model.state_dict().items()}, tiny_model.spec
    swap(tiny_model, {"projector": "gated", "tokenizer.image": "pad", "encoder.dim": 32}, seed=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items())
    assert tiny_model.spec is spec


def test_another_way_to_show_pictures_keeps_every_parameter(tiny_model):
    swapped = swap(tiny_model, {"tokenizer.image": "pad_newline"})
    assert same(tiny_model, swapped.model)
    assert {line.fate for line in swapped.ledger.lines} == {"kept"}
    assert swapped.model.router.image.plan(VisualShape("image", Size(24, 48))).num_tokens == 2 * 2 + 1


def test_marks_are_dropped_when_nothing_inserts_them_and_added_when_something_does(tiny_model):
    bare = {"tokenizer.image": "pad", "tokenizer.multi_image": "pad", "tokenizer.video.newline": "none"}
    without = swap(tiny_model, bare)
    assert fates(without, "learned_tokens") == {"dropped"}
    again = swap(without.model, {"tokenizer.image": "pad_newline"}, seed=3)
    assert fates(again, "learned_tokens") == {"new"}
    assert again.model.learned_tokens["newline"].shape == (32,)


# What is new --------------------------------------------------------------------------------------------------------


def test_a_new_part_is_drawn_from_its_seed(tiny_model):
    first, second, other = (swap(tiny_model, {"projector": "gated"}, seed=s).model.projector for s in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)


def test_a_wider_encoder_gives_the_projector_a_new_first_layer_and_keeps_the_rest_of_it(tiny_model):
    swapped = swap(tiny_model, {"encoder": {"name": "siglip", "image_px": 24, **VIT, "patch_px": 4, "dim": 24}}, seed=1)
    old, new = tiny_model.projector, swapped.model.projector
    assert new.body[0].weight.shape == (32, 24)
    assert same(old.head, new.head)
    assert fates(swapped, "encoder") == {"new", "dropped"}
    assert {line.name: line.fate for line in swapped.ledger.lines if line.part == "projector" and line.after}[
        "body.0.weight"
    ] == "new"


def test_a_new_backbone_of_another_width_gives_a_new_projector_head_and_newline(tiny_model, tiny_spec):
    backbone = {**tiny_spec["backbone"], "dim": 48}
    swapped = swap(tiny_model, {"backbone": backbone}, seed=1)
    assert kept_parts(tiny_model, swapped.model) == {"encoder"}
    assert fates(swapped, "learned_tokens") == {"new", "dropped"}
    assert swapped.model.projector.head.weight.shape == (48, 48)


def test_a_new_encoder_starts_from_the_checkpoint_that_it_names(siglip_model, tmp_path):
    config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config)
    tower.save_pretrained(tmp_path / "tower")
    wanted = {"encoder.checkpoint": str(tmp_path / "tower")}
    loaded, drawn = (swap(siglip_model, wanted, seed=1, weights=w).model for w in ("pretrained", "random"))
    positions = tower.state_dict()["embeddings.position_embedding.weight"]
    assert torch.equal(loaded.encoder.vision_model.embeddings.position_embedding.weight, positions)
    assert not torch.equal(drawn.encoder.vision_model.embeddings.position_embedding.weight, positions)
    assert fates(swap(siglip_model, wanted), "encoder") == {"new", "dropped"}


def test_fewer_blocks_of_an_encoder_keep_those_that_stay(siglip_model):
    swapped = swap(siglip_model, {"encoder.layer": -3})
    lost = {line.name.split(".")[3] for line in swapped.ledger.lines if line.fate == "dropped"}
    assert lost == {"1"}
    assert fates(swapped, "encoder") == {"kept", "dropped"}


# What is resized ----------------------------------------------------------------------------------------------------


def test_larger_pictures_resize_the_position_table_and_nothing_else(siglip_model):
    swapped = swap(siglip_model, {"encoder.image_px": 56})
    resized = [line for line in swapped.ledger.lines if line.fate != "kept"]
    assert [(line.name, line.fate, line.before, line.after) for line in resized] == [
        ("vision_model.embeddings.position_embedding.weight", "resized", (4, 16), (16, 16))
    ]
    assert swapped.model.router.image.plan(VisualShape("image", Size(56, 56))).num_tokens == 16 + 4 * 5


def test_clip_keeps_the_position_of_its_cls_token(tiny_spec):
    model = mmblocks.build({**tiny_spec, "encoder": {**SIGLIP, "name": "clip"}}, seed=0)
    swapped = swap(model, {"encoder.image_px": 42})
    before, after = (m.encoder.vision_model.embeddings.position_embedding.weight for m in (model, swapped.model))
    assert after.shape == (1 + 9, 16)
    assert torch.equal(before[0], after[0])


def test_positions_that_say_nothing_of_place_are_the_same_on_every_grid():
    same_everywhere = torch.tensor([[1.0, -2.0]]).expand(9, 2)
    resized = make_position_resize(Size(3, 3), Size(5, 4))("pos_embed", same_everywhere, (20, 2))
    torch.testing.assert_close(
        resized, torch.tensor([[1.0, -2.0]]).expand(20, 2)
    )  # fp32: taps sum to 1 but for rounding


def test_positions_that_count_columns_still_count_columns():
    columns = torch.arange(8.0).repeat(8).unsqueeze(1)
    resized = make_position_resize(Size(8, 8), Size(8, 16))("pos_embed", columns, (128, 1)).view(8, 16)
    assert (resized.diff(dim=1) > 0).all()
    assert torch.equal(resized[0], resized[7])


def test_a_table_that_is_no_grid_of_patches_is_not_resized():
    resize = make_position_resize(Size(2, 2), Size(4, 4))
    assert resize("positions_of_words.pos_emb", torch.zeros(100, 8), (16, 8)) is None
    assert resize("mlp.weight", torch.zeros(4, 8), (16, 8)) is None


@pytest.fixture
def larger_vocabulary(tmp_path):
    """The tiny model's text tokenizer with tokens of its own beyond the model's 640 rows."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_source("mmblocks:tinyworld_text"))
    tokenizer.add_tokens([f"<new_{i}>" for i in range(700 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def test_a_tokenizer_with_more_tokens_gives_the_vocabulary_more_rows(tiny_model, larger_vocabulary):
    swapped = swap(tiny_model, {"backbone.text_tokenizer": str(larger_vocabulary)})
    old, new = (m.backbone.lm.get_input_embeddings().weight for m in (tiny_model, swapped.model))
    assert new.shape == (700, 32)
    assert torch.equal(new[:640], old)
    torch.testing.assert_close(new[640:], old.mean(dim=0).expand(60, -1))
    assert fates(swapped, "backbone") == {"kept", "resized"}
    assert swapped.model.backbone.lm.lm_head.weight is swapped.model.backbone.lm.model.embed_tokens.weight


def test_a_model_with_more_rows_is_saved_with_its_tokenizer(tiny_model, larger_vocabulary, tmp_path):
    swapped = swap(tiny_model, {"backbone.text_tokenizer": str(larger_vocabulary)})
    again = mmblocks.load(save_swap_result(swapped, tmp_path / "out"))
    assert same(again, swapped.model)
    assert len(again.backbone.text_tokenizer) == 700
    assert again.spec.to_dict()["backbone"]["vocab_size"] == 700


def test_a_backbone_whose_sizes_are_those_of_its_checkpoint_gets_more_rows(tiny_spec, tiny_model, tmp_path):
    tiny_model.backbone.save_to(tmp_path / "lm")
    spec = {**tiny_spec, "backbone": {"name": "causal_lm", "checkpoint": str(tmp_path / "lm")}}
    folder = mmblocks.save(mmblocks.build(spec, seed=0), tmp_path / "model")
    model = mmblocks.load(folder)
    swapped = swap(model, {"backbone.vocab_size": 704})
    old, new = (m.backbone.lm.get_input_embeddings().weight for m in (model, swapped.model))
    assert new.shape == (704, 32)
    assert torch.equal(new[:640], old)
    again = mmblocks.load(save_swap_result(swapped, tmp_path / "out"))
    assert same(again, swapped.model)


def test_rows_are_only_added_to_tables_of_the_vocabulary():
    assert extend_vocabulary("lm.model.layers.0.mlp.up_proj.weight", torch.zeros(4, 2), (6, 2)) is None
    assert extend_vocabulary("lm.lm_head.weight", torch.zeros(4, 2), (3, 2)) is None


# The ledger ---------------------------------------------------------------------------------------------------------

CHANGES = [
    {"projector": "gated"},
    {"projector.depth": 3},
    {"encoder.image_px": 56},
    {"encoder": {"name": "clip", "image_px": 42, **VIT}},
    {"encoder.dim": 24, "encoder.heads": 3},
    {"backbone.depth": 1},
    {"backbone.tie_embeddings": False},
    {"tokenizer.image": "pad", "tokenizer.multi_image": "pad", "tokenizer.video.newline": "none"},
    {"pooling": "average", "template": "qwen_2"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: ", ".join(c))
def test_every_parameter_of_both_models_is_in_the_ledger_once(siglip_model, changes):
    swapped = swap(siglip_model, changes, seed=1)
    ledger = swapped.ledger
    assert ledger.before == count_parameters(siglip_model)
    assert ledger.after == count_parameters(swapped.model)
    assert ledger.after == sum(ledger.count_parameters(fate) for fate in ("kept", "resized", "new"))
    names = [f"{line.part}.{line.name}" for line in ledger.lines if line.after is not None]
    assert sorted(names) == sorted(name for name, _ in swapped.model.named_parameters())
    told = [list(by_fate.values()) for by_fate in swapped.record["tensors"].values()]
    assert sum(len(named) for part in told for named in part) == len({(n.part, n.name, n.fate) for n in ledger.lines})


def test_a_swapped_model_is_loaded_and_computes_the_same(siglip_model, tmp_path):
    from mmblocks.model.convert.probe import compute_our_logits, make_probes

    swapped = swap(siglip_model, {"projector": "gated", "encoder.image_px": 56}, seed=1).model
    save_swap_result(swap(siglip_model, {"projector": "gated", "encoder.image_px": 56}, seed=1), tmp_path / "out")
    again = mmblocks.load(tmp_path / "out")
    for probe in make_probes(swapped):
        assert torch.equal(compute_our_logits(swapped, probe), compute_our_logits(again, probe))


def test_a_model_in_bfloat16_gets_new_parts_in_bfloat16(tiny_spec):
    model = mmblocks.build(tiny_spec, seed=0, dtype=torch.bfloat16)
    swapped = swap(model, {"projector": "gated", "encoder.dim": 32}, seed=1).model
    assert {p.dtype for p in swapped.parameters()} == {torch.bfloat16}
    frequencies = swapped.backbone.lm.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32


# Faults -------------------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once(tiny_model):
    with pytest.raises(ConfigError) as refused:
        swap(tiny_model, {"projector": "gatde", "encoder.dimm": 3, "tokenizer.video": "pad", "pooling.stride": 0})
    said = str(refused.value)
    for reason in (
        "model.projector: no projector is called 'gatde'. Did you mean 'gated'?",
        "model.encoder.dimm: encoder 'tiny_conv' has no setting 'dimm'. Did you mean 'dim'?",
        "model.tokenizer.video: 'pad' does not serve the scenario 'video'",
        "model.pooling.stride: pooling 'bilinear': stride=0",
    ):
        assert reason in said


def test_slots_that_do_not_exist_are_all_named(tiny_model):
    with pytest.raises(ConfigError) as refused:
        swap(tiny_model, {"projecter": "mlp", "tokeniser.image": "pad"})
    assert "model.projecter: a model has no such part. Did you mean 'projector'?" in str(refused.value)
    assert "model.tokeniser.image: a model has no such part. Did you mean 'tokenizer.image'?" in str(refused.value)


def test_a_swap_of_nothing_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="nothing is to be swapped"):
        swap(tiny_model, {})


def test_what_was_wrong_before_does_not_stop_a_swap(tiny_spec):
    """A checkpoint whose largest image exceeds its sequence can still get another projector."""
    model = mmblocks.build(tiny_spec, seed=0)
    model.spec = mmblocks.ModelSpec.from_dict({**tiny_spec, "backbone": {**tiny_spec["backbone"], "max_tokens": 64}})
    assert type(swap(model, {"projector": "gated"}).model.projector).__name__ == "Gated"
