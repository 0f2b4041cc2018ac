"""Laws that every backbone obeys, asked of every family that `families.json` has in tiny form."""

import json
from pathlib import Path

import pytest
import torch

from mmblocks.batch import Packing
from mmblocks.components import backbones
from mmblocks.errors import ConfigError
from mmblocks.model.generate import left_padded
from mmblocks.testing import LAWS
from mmblocks.testing.laws import Subject

OWN = [name for name in backbones if backbones.about(name).of is None]
FAMILIES = json.loads((Path(__file__).parent / "families.json").read_text())
TINY = {"vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "max_tokens": 64}
CASES = [(name, backbones[name].tiny) for name in OWN] + [
    ("causal_lm", {k: v for k, v in {**TINY, "family": family, **settings}.items() if v is not None})
    for family, settings in FAMILIES.items()
]
MIXED = (
    "qwen3_moe",
    "mixtral",
    "gpt_oss",
)  # experts see another number of rows with every text, which rounds otherwise


@pytest.fixture(params=CASES, ids=lambda case: case[1].get("family", case[0]))
def backbone(request):
    """Random in every tensor, so that scores are large enough for caps, windows and sinks to matter."""
    name, settings = request.param
    made = backbones.build({"name": name, **settings}).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def positions(lengths):
    return torch.cat([torch.arange(n) for n in lengths])


def test_rows_in_rows_out(backbone):
    x = backbone.embed(torch.arange(9))
    hidden = backbone.hidden(x, positions([4, 5]), Packing.of([4, 5]))
    assert hidden.shape == x.shape == (9, backbone.dim)
    assert backbone.logits(hidden).shape == (9, backbone.vocab_size)


def test_packing_changes_nothing(backbone):
    lengths = [3, 1, 6]
    x = torch.randn(10, backbone.dim)
    packed = backbone.hidden(x, positions(lengths), Packing.of(lengths))
    alone = [backbone.hidden(part, torch.arange(len(part)), Packing.of([len(part)])) for part in x.split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)  # fp32: products of more rows


def test_no_sequence_notices_its_neighbour(backbone):
    x = torch.randn(9, backbone.dim)
    other = torch.cat([torch.randn(4, backbone.dim), x[4:]])
    before, after = (backbone.hidden(rows, positions([4, 5]), Packing.of([4, 5])) for rows in (x, other))
    allowed = 1e-5 if backbone.config.model_type in MIXED else 0
    torch.testing.assert_close(before[4:], after[4:], rtol=0, atol=allowed)


def test_no_row_sees_a_later_one(backbone):
    x = torch.randn(6, backbone.dim)
    later = torch.cat([x[:3], torch.randn(3, backbone.dim)])
    before, after = (backbone.hidden(rows, torch.arange(6), Packing.of([6])) for rows in (x, later))
    torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter(backbone):
    ids = torch.arange(8)
    hidden = backbone.hidden(backbone.embed(ids), torch.arange(8), Packing.of([8]))
    backbone.logits(hidden).square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_facts_on_meta_are_the_facts(backbone):
    assert backbone.dim == backbone.config.hidden_size
    assert backbone.vocab_size == backbone.lm.get_input_embeddings().weight.shape[0]


@torch.no_grad()
def test_what_is_written_with_a_cache_is_what_packed_rows_predict(backbone):
    lengths, steps = [5, 9], 4
    x = backbone.embed(torch.randint(1, 60, (14,)))
    prompts, mask = left_padded(x, lengths)
    written = backbone.lm.generate(
        inputs_embeds=prompts,
        attention_mask=mask,
        min_new_tokens=steps,
        max_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for i, prompt in enumerate(x.split(lengths)):
        rows = torch.cat([prompt, backbone.embed(written.sequences[i, :-1])])
        hidden = backbone.hidden(rows, torch.arange(len(rows)), Packing.of([len(rows)]))
        cached = torch.stack([logits[i] for logits in written.logits])
        torch.testing.assert_close(cached, backbone.logits(hidden[len(prompt) - 1 :]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        (
            "minimax",
            {"kv_heads": 2, "further": {"num_local_experts": 4}},
            "packed sequences see each other.*drops the packing",
        ),
        ("stablelm", {"kv_heads": 4}, "does not run on packed embeddings"),
        ("bert", {}, "packed attention does not compute what its transformers code computes"),
        ("bloom", {"mlp_dim": None, "max_tokens": None}, "its config says no max_position_embeddings"),
        ("gemma3", {}, "no such size: vocab_size=64"),
    ],
)
def test_a_family_that_cannot_be_packed_is_refused_with_the_reason(family, settings, reason):
    given = {k: v for k, v in {**TINY, "family": family, **settings}.items() if v is not None}
    with pytest.raises(ConfigError, match=f"family '{family}'.*{reason}"):
        backbones.build({"name": "causal_lm", **given})


@pytest.mark.parametrize("law", LAWS["backbone"], ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", OWN)
def test_a_backbone_keeps_the_law_of_the_kit(name, law):
    law(Subject.of(backbones, name, {}))
