"""Both names, both behaviours: what differs between versions of torch and transformers, whichever version is here."""

import warnings

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mmblocks import compat
from mmblocks.backbones import last_layer
from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import find_autocast_dtype, find_cache_keyword, make_flop_counter, suppress_warning_errors
from mmblocks.components import backbones

TINY = {"vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48, "max_tokens": 64}


class Renamed(nn.Module):
    def forward(self, x, cache=None): ...


class NotRenamed(nn.Module):
    def forward(self, x, past_key_values=None): ...


class Unknown(nn.Module):
    def forward(self, x, layer_past=None): ...


def test_a_cache_has_the_name_that_the_signature_gives_it():
    assert find_cache_keyword(Renamed()) == "cache"
    assert find_cache_keyword(NotRenamed()) == "past_key_values"


def test_a_module_without_a_known_cache_is_named():
    with pytest.raises(AttributeError, match=r"Unknown.forward takes no key-value cache by the name of cache or past"):
        find_cache_keyword(Unknown())


@pytest.mark.parametrize("family", last_layer.FAMILIES)
def test_every_family_takes_a_cache_at_each_level(family):
    config = AutoConfig.for_model(family, num_hidden_layers=2)
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config).get_decoder()
    layer = decoder.layers[-1]
    assert len({find_cache_keyword(module) for module in (decoder, layer, layer.self_attn)}) == 1


@pytest.mark.parametrize("family", last_layer.FAMILIES)
def test_every_family_has_the_last_layers_saving(family):
    assert last_layer.find_reason_against_family(family) is None


def test_autocast_is_off_on_where_it_is_asked_for_and_unknown_to_meta():
    assert find_autocast_dtype("cpu") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert find_autocast_dtype("cpu") is torch.bfloat16
    assert find_autocast_dtype("meta") is None


def test_attention_on_the_cpu_is_counted_backward_too():
    q, k, v = (torch.randn(2, heads, rows, 8, requires_grad=True) for heads, rows in ((4, 5), (2, 7), (2, 7)))
    with make_flop_counter() as counter:
        out = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        forward = counter.get_total_flops()
        out.sum().backward()
    product = 2 * 2 * 4 * 5 * 7 * 8  # a product of all queries and keys, or of weights and values
    assert forward == 2 * product
    assert counter.get_total_flops() == forward + 5 * product


# Warnings -----------------------------------------------------------------------------------------------------------


def test_a_warning_raises_nothing_in_a_probe_and_is_still_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")
        with suppress_warning_errors():
            warnings.warn("a keyword is going", FutureWarning, stacklevel=1)
        with pytest.raises(FutureWarning):
            warnings.warn("a keyword is going", FutureWarning, stacklevel=1)
    assert [str(w.message) for w in shown] == ["a keyword is going"]


def test_warnings_that_are_ignored_stay_ignored_in_a_probe():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("ignore")
        with suppress_warning_errors():
            warnings.warn("a keyword is going", FutureWarning, stacklevel=1)
    assert shown == []


@pytest.fixture
def deprecating(monkeypatch):
    """transformers' Qwen2 warns in each of its layers, as it does for a keyword that it gives up."""
    from transformers.models.qwen2 import modeling_qwen2

    real, met = modeling_qwen2.Qwen2DecoderLayer.forward, []

    def forward(self, *args, **kwargs):
        met.append(1)
        warnings.warn("a keyword is going", FutureWarning, stacklevel=2)
        return real(self, *args, **kwargs)

    forward.__wrapped__ = real
    monkeypatch.setattr(modeling_qwen2.Qwen2DecoderLayer, "forward", forward)
    monkeypatch.setattr(last_layer, "_reasons_by_config", {})
    return met


@pytest.mark.filterwarnings("error")
def test_a_family_that_warns_is_no_worse_for_it(deprecating, caplog):
    backbone = backbones.build({"name": "causal_lm", "family": "qwen2", **TINY})
    assert deprecating
    assert caplog.records == []
    assert last_layer.find_reason_against(backbone.lm) is None


# A lost saving ------------------------------------------------------------------------------------------------------


@pytest.fixture
def renamed_again(monkeypatch):
    """A version of transformers in which attention calls its cache by a name that nobody knows."""
    monkeypatch.setattr(compat, "CACHE_KEYWORDS", ("kv_store",))
    compat._find_parameter_for_cache.cache_clear()
    monkeypatch.setattr(last_layer, "_reasons_by_config", {})
    last_layer._log_reason_once.cache_clear()
    yield
    compat._find_parameter_for_cache.cache_clear()
    last_layer._log_reason_once.cache_clear()


def test_a_saving_that_a_family_lost_is_a_warning_once_with_the_cause(monkeypatch, caplog):
    monkeypatch.setattr(last_layer, "_reasons_by_config", {})
    monkeypatch.setattr(last_layer, "_find_rotary_function", lambda attends: None)
    last_layer._log_reason_once.cache_clear()
    for _ in range(2):
        backbones.build({"name": "causal_lm", "family": "qwen2", **TINY})
    last_layer._log_reason_once.cache_clear()
    (said,) = [record for record in caplog.records if "last layer" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert "backbone family 'qwen2'" in said.getMessage()
    assert "its code has no apply_rotary_pos_emb" in said.getMessage()
    assert "mmblocks doctor" in said.getMessage()


@pytest.mark.usefixtures("renamed_again")
def test_a_renamed_keyword_is_the_cause_that_is_named():
    reason = last_layer.find_reason_against_family("qwen2")
    assert reason is not None
    assert "takes no key-value cache by the name of kv_store" in reason


def test_no_helper_shows_the_numbers_of_a_tensor():
    k = torch.arange(12.0).view(1, 1, 3, 4)
    helpers = (last_layer._FixedCache(k, k), last_layer._RecordingCache([k]))
    assert all("tensor" not in repr(helper) for helper in helpers)
    assert "tensor" not in repr(RowIndex(torch.tensor([1]), (1,)))
    assert "tensor" not in repr(Packing.from_lengths([3, 4]))
