"""Laws that every backbone obeys."""

import pytest
import torch

from mmblocks.batch import Packing
from mmblocks.components import backbones

OWN = [name for name in backbones if backbones[name].of is None]
FAMILIES = ["qwen2", "llama", "mistral"]


def build(name, **settings):
    return backbones.build({"name": name, **backbones[name].tiny, **settings}).eval()


CASES = [(name, {}) for name in OWN] + [("causal_lm", {"family": family}) for family in FAMILIES]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *case[1].values()]))
def backbone(request):
    name, settings = request.param
    return build(name, **settings)


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
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_no_sequence_notices_its_neighbour(backbone):
    x = torch.randn(9, backbone.dim)
    other = torch.cat([torch.randn(4, backbone.dim), x[4:]])
    before, after = (backbone.hidden(rows, positions([4, 5]), Packing.of([4, 5])) for rows in (x, other))
    assert torch.equal(before[4:], after[4:])


def test_no_row_sees_a_later_one(backbone):
    x = torch.randn(6, backbone.dim)
    later = torch.cat([x[:3], torch.randn(3, backbone.dim)])
    before, after = (backbone.hidden(rows, torch.arange(6), Packing.of([6])) for rows in (x, later))
    torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter(backbone):
    ids = torch.arange(8)
    hidden = backbone.hidden(backbone.embed(ids), torch.arange(8), Packing.of([8]))
    backbone.logits(hidden).square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_facts_on_meta_are_the_facts(backbone):
    assert backbone.dim == backbone.config.hidden_size
    assert backbone.vocab_size == backbone.lm.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize("name", [name for name in backbones if backbones[name].of is not None])
def test_every_preset_can_be_weighed_without_memory(name):
    with torch.device("meta"):
        backbone = backbones.build(name)
    assert all(p.is_meta for p in backbone.parameters())
    assert backbone.dim % backbone.config.num_attention_heads == 0
