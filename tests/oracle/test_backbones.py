"""Logits of every tiny family against transformers' own model, read from what the backbone saves."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmblocks.batch import Packing
from mmblocks.components import backbones

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
