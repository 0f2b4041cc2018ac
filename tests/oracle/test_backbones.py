"""Logits of every tiny family against transformers' own model, read from what the backbone saves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mmblocks.batch import Packing
from mmblocks.components import backbones
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert.weights import find_stored_dtype

FAMILIES = json.loads((Path(__file__).parents[1] / "contract" / "families.json").read_text())
TINY = {"vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "max_tokens": 64}
WITHOUT_SDPA = ("gemma2", "gpt_oss")  # capped scores and sinks, which torch's attention does not know


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_one_sequence_has_the_logits_of_transformers(family, tmp_path):
    settings = {k: v for k, v in {**TINY, "family": family, **FAMILIES[family]}.items() if v is not None}
    ours = backbones.build({"name": "causal_lm", **settings}).eval()
    for parameter in ours.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    ours.save_to(tmp_path)
    ids = torch.randint(1, 60, (19,))
    got = ours.compute_logits(
        ours.compute_hidden_states(ours.embed_tokens(ids), torch.arange(19), Packing.from_lengths([19]))
    )
    for attention in ("eager",) if family in WITHOUT_SDPA else ("eager", "sdpa"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
        torch.testing.assert_close(got, theirs(ids[None]).logits[0], rtol=1e-5, atol=1e-5)  # fp32 kernels


@torch.no_grad()
def test_a_head_in_the_files_of_tied_embeddings_is_what_transformers_makes_of_it(tmp_path):
    backbones.build({"name": "causal_lm", **TINY, "family": "llama", "tie_embeddings": True}).save_to(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = backbones.build({"name": "causal_lm", "checkpoint": str(tmp_path)}).eval()
    ours.load_pretrained()
    ids = torch.randint(1, 60, (19,))
    hidden = ours.compute_hidden_states(ours.embed_tokens(ids), torch.arange(19), Packing.from_lengths([19]))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(ours.compute_logits(hidden), theirs(ids[None]).logits[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_vocabulary_larger_than_that_of_the_checkpoint_has_the_same_logits_for_its_tokens(tmp_path):
    small = backbones.build({"name": "causal_lm", **TINY, "family": "llama", "tie_embeddings": False})
    small.save_to(tmp_path)
    large = backbones.build({"name": "causal_lm", "checkpoint": str(tmp_path), "vocab_size": 80})
    large.load_pretrained()
    assert large.vocab_size == large.config.vocab_size == 80
    ids = torch.randint(1, 60, (19,))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    got = large.compute_logits(
        large.compute_hidden_states(large.embed_tokens(ids), torch.arange(19), Packing.from_lengths([19]))
    )
    torch.testing.assert_close(got[:, :64], theirs(ids[None]).logits[0], rtol=1e-5, atol=1e-5)  # fp32 kernels
    for table in (large.lm.model.embed_tokens.weight, large.lm.lm_head.weight):
        torch.testing.assert_close(table[64:], table[:64].mean(dim=0).expand(16, -1))


def test_a_vocabulary_smaller_than_that_of_the_checkpoint_is_refused(tmp_path):
    backbones.build({"name": "causal_lm", **TINY, "family": "llama"}).save_to(tmp_path)
    with pytest.raises(ConfigError, match=r"vocab_size: .* has 64, the settings say 60"):
        backbones.build({"name": "causal_lm", "checkpoint": str(tmp_path), "vocab_size": 60})


# Pickled weights ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path):
    """A causal language model of transformers in pytorch_model.bin alone, in float16, as Vicuna is published."""
    ours = backbones.build({"name": "causal_lm", **TINY, "family": "llama"})
    ours.save_to(tmp_path, torch.float16)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    return tmp_path, tensors


def test_pickled_weights_of_a_language_model_are_read(pickled):
    folder, tensors = pickled
    ours = backbones.build({"name": "causal_lm", **TINY, "family": "llama"})
    ours.load_from(folder, torch.float16)
    state = ours.lm.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert find_stored_dtype(folder) == torch.float16


def test_a_pickled_language_model_that_asks_for_code_is_refused_and_nothing_runs(pickled, tmp_path):
    folder, _ = pickled
    torch.save({"lm_head.weight": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    ours = backbones.build({"name": "causal_lm", **TINY, "family": "llama"})
    with pytest.raises(CheckpointError, match=r"asks for code|cannot be read"):
        ours.load_from(folder, torch.float16)
    assert not (tmp_path / "ran").exists()


class Trap:
    """A pickle of it writes a file when it is loaded by a reader that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
