"""What is special to `causal_lm` and its presets."""

import logging

import pytest
import torch
from torch.utils._pytree import tree_map

from mmblocks.backbones import last_layer
from mmblocks.backbones.last_layer import find_reason_against
from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import make_flop_counter
from mmblocks.components import backbones
from mmblocks.errors import ConfigError
from mmblocks.model.checks.limits import find_backbone_faults

PUBLISHED = {  # parameters that the model cards and weight files state, shared embeddings counted once
    "gemma2_27b": 27_227_128_320,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_1b": 999_885_952,
    "gemma3_270m": 268_098_176,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama2_7b": 6_738_415_616,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_70b": 70_553_706_496,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "mixtral_8x7b": 46_702_792_704,
    "olmo2_13b": 13_716_198_400,
    "olmo2_1b": 1_484_916_736,
    "olmo2_32b": 32_234_279_936,
    "olmo2_7b": 7_298_617_344,
    "olmo_1b": 1_176_764_416,
    "olmo_7b": 6_888_095_744,
    "phi2": 2_779_683_840,
    "phi3_medium": 13_960_238_080,
    "phi3_mini": 3_821_079_552,
    "phi4": 14_659_507_200,
    "qwen1_5_0_5b": 463_987_712,
    "qwen1_5_14b": 14_167_290_880,
    "qwen1_5_32b": 32_512_218_112,
    "qwen1_5_7b": 7_721_324_544,
    "qwen2_0_5b": 494_032_768,
    "qwen2_1_5b": 1_543_714_304,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_72b": 72_706_203_648,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_72b": 72_706_203_648,
    "qwen2_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_14b": 14_768_307_200,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_32b": 32_762_123_264,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "smollm2_135m": 134_515_008,
    "smollm2_1_7b": 1_711_376_384,
    "smollm2_360m": 361_821_120,
    "smollm3_3b": 3_075_098_624,
    "smollm_135m": 134_515_008,
    "smollm_1_7b": 1_711_376_384,
    "smollm_360m": 361_821_120,
    "tinyllama_1_1b": 1_100_048_384,
    "vicuna_13b": 13_015_864_320,
    "vicuna_7b": 6_738_415_616,
    "yi_34b": 34_388_917_248,
}
TINY = {"name": "causal_lm", "vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "max_tokens": 64}


def on_meta(name, **settings):
    with torch.device("meta"):
        return backbones.build({"name": name, **settings})


def test_every_preset_stands_in_the_table():
    assert {name for name in backbones if backbones.find_info(name).preset_of is not None} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    backbone = on_meta(name)
    assert all(p.is_meta for p in backbone.parameters())
    assert sum(p.numel() for p in backbone.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_said_against_a_preset(name):
    assert find_backbone_faults(backbones.resolve_settings(name)) == []


# The last layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_last_layer_of_a_preset_computes_asked_rows_only(name):
    assert find_reason_against(on_meta(name).lm) is None


@pytest.mark.parametrize(
    ("step", "name"),
    [("_normalise_keys", "qwen3_0_6b"), ("_normalise_keys", "olmo2_1b"), ("_project_keys_and_values", "phi3_mini")],
)
def test_keys_or_values_other_than_the_familys_are_a_reason_against_it(monkeypatch, step, name):
    real = getattr(last_layer, step)
    monkeypatch.setattr(last_layer, "_reasons_by_config", {})
    monkeypatch.setattr(last_layer, step, lambda *given: tree_map(lambda x: 1.01 * x, real(*given)))
    assert find_reason_against(on_meta(name).lm) == "it computes something else"


def flops(backbone, tokens, rows=None):
    packing = Packing(torch.tensor([0, tokens], dtype=torch.int32), tokens)
    with torch.device("meta"), make_flop_counter() as counter:
        hidden = backbone.compute_hidden_states(torch.empty(tokens, backbone.dim), torch.arange(tokens), packing, rows)
    return hidden.shape, counter.get_total_flops()


@torch.no_grad()
def test_rows_that_nobody_asks_for_cost_keys_and_values_alone():
    backbone, tokens, labels = on_meta("qwen2_0_5b"), 6400, 100
    _, whole = flops(backbone, tokens)
    shape, some = flops(backbone, tokens, RowIndex(torch.empty(labels, dtype=torch.int64, device="meta"), (labels,)))
    assert shape == (labels, backbone.dim)
    dim, kv, mlp = 896, 128, 4864
    saved = 2 * (tokens - labels) * (2 * dim * dim + 3 * dim * mlp)
    again = 2 * labels * 2 * dim * kv  # keys and values of the asked rows, twice
    assert whole - some >= saved - again  # and what attention saves, which depends on how it is computed


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at that of a block's input
def test_compiled_blocks_compute_asked_rows_as_they_do_uncompiled():
    backbone = backbones.build({**TINY, "family": "qwen3", "kv_heads": 2}).eval()
    for block in backbone.lm.get_decoder().layers:
        block.compile(backend="eager")
    for lengths, index, counts in (([4, 3, 6], [1, 3, 9], (2, 0, 1)), ([5, 7], [11], (0, 1))):
        x, packing = torch.randn(sum(lengths), 32), Packing.from_lengths(lengths)
        given = x, torch.cat([torch.arange(n) for n in lengths]), packing
        rows = RowIndex(torch.tensor(index), counts)
        with torch.compiler.set_stance("force_eager"):
            want = backbone.compute_hidden_states(*given)[rows.index]
        torch.testing.assert_close(backbone.compute_hidden_states(*given, rows), want, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_making_a_backbone_leaves_torchs_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    on_meta("causal_lm", family="qwen2", dim=64, heads=8)
    assert torch.equal(torch.rand(1), expected)


def test_a_last_layer_that_computes_all_rows_is_told_once_with_the_reason(caplog):
    caplog.set_level(logging.INFO, "mmblocks")
    last_layer._log_reason_once.cache_clear()
    for _ in range(2):
        backbones.build({**TINY, "family": "gpt2"})
    said = [r.getMessage() for r in caplog.records if "last layer" in r.getMessage()]
    reason = "its attention has neither k_proj and v_proj nor qkv_proj"
    assert said == [f"backbone family 'gpt2': its last layer computes all rows: {reason}"]


# Settings -----------------------------------------------------------------------------------------------------------


def test_sizes_have_the_names_of_the_family():
    assert on_meta("causal_lm", family="phi", dim=32, heads=4, norm_eps=0.25).config.layer_norm_eps == 0.25
    assert on_meta("causal_lm", family="llama", dim=32, heads=4, norm_eps=0.25).config.rms_norm_eps == 0.25


def test_heads_that_cannot_share_keys_are_refused():
    heads = {"family": "qwen2", "vocab_size": 8, "dim": 16, "depth": 1, "heads": 2}
    for given in ({"kv_heads": 32}, {"further": {"num_key_value_heads": 32}}):
        with pytest.raises(ConfigError, match="heads=2 is no multiple of kv_heads=32; write kv_heads=2 or a divisor"):
            backbones.build({"name": "causal_lm", **heads, **given})


@pytest.mark.parametrize(("family", "own"), [("qwen2", 32), ("mistral", 8), ("starcoder2", 2), ("gemma2", 4)])
def test_there_are_as_many_key_heads_as_heads_where_only_these_are_given(family, own):
    assert on_meta("causal_lm", family=family, vocab_size=8, dim=32, heads=4).config.num_key_value_heads == 4
    assert on_meta("causal_lm", family=family, vocab_size=8).config.num_key_value_heads == own


def test_channels_per_head_that_a_family_always_has_stay_as_they_are():
    assert on_meta("causal_lm", family="qwen3", vocab_size=8, dim=32, heads=4).config.head_dim == 128
    assert on_meta("causal_lm", family="gemma", vocab_size=8, dim=33, heads=5).config.head_dim == 256


def test_a_size_that_the_family_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="family 'gpt2' has no such size: kv_heads=2; leave it out"):
        backbones.build({**TINY, "family": "gpt2", "kv_heads": 2})


def test_another_rotary_base_leaves_the_rest_of_the_rotary_settings():
    rope = on_meta("causal_lm", family="phi", dim=32, heads=4, rope_theta=500.0).config.rope_parameters
    assert (rope["rope_theta"], rope["partial_rotary_factor"]) == (500.0, 0.5)


def test_one_rotary_base_for_layers_of_two_kinds_is_refused():
    with pytest.raises(ConfigError, match=r"rope_theta=500 does not say which; write further\.rope_parameters"):
        on_meta("causal_lm", family="gemma3_text", rope_theta=500.0)


def test_further_settings_reach_the_family():
    backbone = backbones.build({**TINY, "family": "granite", "further": {"logits_scaling": 4.0}})
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(backbone.compute_logits(hidden) * 4, backbone.lm.lm_head(hidden))


def test_special_tokens_beyond_a_small_vocabulary_are_switched_off():
    assert backbones.build({**TINY, "family": "phi3"}).config.pad_token_id is None  # 32000 in the family


def test_what_a_family_says_against_its_settings_is_passed_on():
    with pytest.raises(ConfigError, match="family 'llama': its transformers code cannot be built with these settings"):
        backbones.build({**TINY, "family": "llama", "heads": 5})
