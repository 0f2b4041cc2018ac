"""What is special to `causal_lm` and its presets."""

import pytest
import torch

from mmblocks.components import backbones
from mmblocks.errors import ConfigError
from mmblocks.model.faults import resolved
from mmblocks.model.limits import backbone_faults

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
    assert {name for name in backbones if backbones.about(name).of is not None} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    backbone = on_meta(name)
    assert all(p.is_meta for p in backbone.parameters())
    assert sum(p.numel() for p in backbone.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_said_against_a_preset(name):
    assert backbone_faults(resolved(backbones, name)) == []


def test_sizes_have_the_names_of_the_family():
    assert on_meta("causal_lm", family="phi", dim=32, heads=4, norm_eps=0.25).config.layer_norm_eps == 0.25
    assert on_meta("causal_lm", family="llama", dim=32, heads=4, norm_eps=0.25).config.rms_norm_eps == 0.25


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
    torch.testing.assert_close(backbone.logits(hidden) * 4, backbone.lm.lm_head(hidden))


def test_special_tokens_beyond_a_small_vocabulary_are_switched_off():
    assert backbones.build({**TINY, "family": "phi3"}).config.pad_token_id is None  # 32000 in the family


def test_what_a_family_says_against_its_settings_is_passed_on():
    with pytest.raises(ConfigError, match="family 'llama': its transformers code cannot be built with these settings"):
        backbones.build({**TINY, "family": "llama", "heads": 5})
