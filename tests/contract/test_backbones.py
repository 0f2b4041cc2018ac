"""Laws that every backbone obeys, asked of every family that `families.json` has in tiny form."""

import copy
import io
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from mmblocks.batch import IGNORE, Packing, RowIndex
from mmblocks.compat import enable_gradient_checkpointing
from mmblocks.components import backbones
from mmblocks.errors import ConfigError
from mmblocks.testing import CHECKS
from mmblocks.testing.conformance import Subject
from mmblocks.train.adapters.lora import add_lora
from mmblocks.train.stages import Lora

OWN = [name for name in backbones if backbones.find_info(name).preset_of is None]
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


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[1].get("family", case[0]))
def built_backbone(request):
    """Random in every tensor, so that scores are large enough for caps, windows and sinks to matter; where torch's
    generator stands after that, for other numbers than the weights'.
    """
    torch.manual_seed(0)
    name, settings = request.param
    made = backbones.build({"name": name, **settings}).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made, torch.get_rng_state()


@pytest.fixture
def backbone(built_backbone):
    """A copy of its own for every test."""
    made, generator_state = built_backbone
    torch.set_rng_state(generator_state)
    return copy.deepcopy(made)


def positions(lengths):
    return torch.cat([torch.arange(n) for n in lengths])


def blocks(backbone):
    decoder = backbone.lm.get_decoder()
    return decoder.h if backbone.config.model_type == "gpt2" else decoder.layers


def rows_at(index, lengths):
    targets = torch.full((sum(lengths),), IGNORE)
    targets[index] = 1
    return RowIndex.from_targets(targets, Packing.from_lengths(lengths))


def test_rows_in_rows_out(backbone):
    x = backbone.embed_tokens(torch.arange(9))
    hidden = backbone.compute_hidden_states(x, positions([4, 5]), Packing.from_lengths([4, 5]))
    assert hidden.shape == x.shape == (9, backbone.dim)
    assert backbone.compute_logits(hidden).shape == (9, backbone.vocab_size)


def test_packing_changes_nothing(backbone):
    lengths = [3, 1, 6]
    x = torch.randn(10, backbone.dim)
    packed = backbone.compute_hidden_states(x, positions(lengths), Packing.from_lengths(lengths))
    alone = [
        backbone.compute_hidden_states(part, torch.arange(len(part)), Packing.from_lengths([len(part)]))
        for part in x.split(lengths)
    ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)  # fp32: products of more rows


def test_no_sequence_notices_its_neighbour(backbone):
    x = torch.randn(9, backbone.dim)
    other = torch.cat([torch.randn(4, backbone.dim), x[4:]])
    before, after = (
        backbone.compute_hidden_states(rows, positions([4, 5]), Packing.from_lengths([4, 5])) for rows in (x, other)
    )
    allowed = 1e-5 if backbone.config.model_type in MIXED else 0
    torch.testing.assert_close(before[4:], after[4:], rtol=0, atol=allowed)


def test_no_row_sees_a_later_one(backbone):
    x = torch.randn(6, backbone.dim)
    later = torch.cat([x[:3], torch.randn(3, backbone.dim)])
    before, after = (
        backbone.compute_hidden_states(rows, torch.arange(6), Packing.from_lengths([6])) for rows in (x, later)
    )
    torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter(backbone):
    ids = torch.arange(8)
    hidden = backbone.compute_hidden_states(backbone.embed_tokens(ids), torch.arange(8), Packing.from_lengths([8]))
    backbone.compute_logits(hidden).square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_facts_on_meta_are_the_facts(backbone):
    assert backbone.dim == backbone.config.hidden_size
    assert backbone.vocab_size == backbone.lm.get_input_embeddings().weight.shape[0]


@torch.no_grad()
def test_what_is_written_with_a_cache_is_what_packed_rows_predict(backbone):
    lengths, steps = [5, 9], 4
    x = backbone.embed_tokens(torch.randint(1, 60, (14,)))
    prompts = pad_sequence(x.split(lengths), batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones(n) for n in lengths], batch_first=True, padding_side="left").long()
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
        rows = torch.cat([prompt, backbone.embed_tokens(written.sequences[i, :-1])])
        hidden = backbone.compute_hidden_states(rows, torch.arange(len(rows)), Packing.from_lengths([len(rows)]))
        cached = torch.stack([logits[i] for logits in written.logits])
        torch.testing.assert_close(cached, backbone.compute_logits(hidden[len(prompt) - 1 :]), rtol=1e-4, atol=1e-5)


# Some rows ----------------------------------------------------------------------------------------------------------

LENGTHS = [4, 3, 6]
ASKED = {
    "some of some sequences": [1, 3, 9],
    "the last": [12],
    "the last of each": [3, 6, 12],
    "none": [],
    "all": list(range(13)),
}


@pytest.fixture
def exact(backbone):
    """In float64, and in training. Norms compute in float32 all the same, which bounds how far things agree."""
    return learning(backbone)


def learning(backbone):
    if backbone.config.model_type in MIXED:
        backbone.lm.set_experts_implementation("eager")  # grouped products know no float64
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return backbone.double().train()


def learned(backbone, index, asked):
    """These rows, and the gradients that a loss over them gives to parameters and inputs."""
    backbone.zero_grad()
    x = torch.randn(13, backbone.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rows = rows_at(index, LENGTHS) if asked else None
    hidden = backbone.compute_hidden_states(x, positions(LENGTHS), Packing.from_lengths(LENGTHS), rows)
    found = hidden if asked else hidden[index]
    (found * torch.arange(1, found.numel() + 1).view_as(found).cos()).sum().backward()
    return found, x.grad, {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", ASKED.values(), ids=ASKED)
def test_some_rows_are_rows_of_the_whole_and_learn_the_same(exact, index):
    same(learned(exact, index, asked=True), learned(exact, index, asked=False))


def recomputed(backbone, folder):
    for block in blocks(backbone):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return backbone


def recomputed_by_transformers(backbone, folder):
    enable_gradient_checkpointing(backbone.lm, {"use_reentrant": False})
    return backbone


def copied(backbone, folder):
    """As an average of weights is; the original goes on learning."""
    copy_of_it = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1)
    return copy_of_it


def pickled(backbone, folder):
    written = io.BytesIO()
    torch.save(backbone, written)
    written.seek(0)
    return torch.load(written, weights_only=False)


def read_again(backbone, folder):
    backbone.save_to(folder)
    backbone.load_from(folder)
    return learning(backbone)


def with_adapters(backbone, folder):
    model = nn.Module()
    model.backbone = backbone
    if backbone.config.model_type != "gpt2":  # its layers are no torch.nn.Linear
        add_lora(model, Lora(1e-3, rank=2, dropout=0.0))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return backbone


@pytest.mark.parametrize("way", [recomputed, recomputed_by_transformers, copied, pickled, read_again, with_adapters])
def test_some_rows_are_rows_of_the_whole_when(exact, way, tmp_path):
    changed = way(exact, tmp_path)
    met = []
    blocks(changed)[-1].mlp.register_forward_pre_hook(lambda _, args: met.append(args[0].shape[1]))
    want, got = (learned(changed, [1, 3, 9], asked) for asked in (False, True))
    same(got, want)
    assert met[0] == 13
    assert met[-1] == (13 if changed.config.model_type == "gpt2" else 3)


@torch.no_grad()
@pytest.mark.parametrize("index", [[1, 3, 9], []])
def test_a_cache_is_told_keys_and_values_of_all_rows(exact, index):
    told, x = ([], []), torch.randn(13, exact.dim, dtype=torch.float64)
    for asked, kept in zip((None, rows_at(index, LENGTHS)), told, strict=True):
        exact.compute_hidden_states(x, positions(LENGTHS), Packing.from_lengths(LENGTHS), asked, cache=Watching(kept))
    assert [layer for layer, *_ in told[1]] == list(range(exact.config.num_hidden_layers))
    assert told[0][-1][1].shape[2] == 13
    same([kv for _, *kv in told[1]], [kv for _, *kv in told[0]])


class Watching:
    def __init__(self, kept):
        self.kept = kept

    def update(self, k, v, layer, *_, **__):
        self.kept.append((layer, k, v))
        return k, v


@torch.no_grad()
@pytest.mark.parametrize("index", [None, [0, 2, 3], []])
def test_tokens_go_on_from_keys_and_values_that_are_kept(exact, index):
    """Three sequences of which 4, 0 and 5 tokens are known; 1, 3 and 1 come."""
    known, new = [4, 0, 5], [1, 3, 1]
    lengths = [a + b for a, b in zip(known, new, strict=True)]
    x = torch.randn(14, exact.dim, dtype=torch.float64)
    comes = torch.cat([torch.arange(b) >= a for a, b in zip(known, lengths, strict=True)])
    store = Store(comes)
    before = [n for n in known if n]
    exact.compute_hidden_states(
        x[~comes], positions(before), Packing.from_lengths(before), rows_at([], before), cache=store
    )
    places = positions(lengths)[comes]
    rows = None if index is None else rows_at(index, new)
    keys = Packing.from_lengths(lengths)
    got = exact.compute_hidden_states(x[comes], places, Packing.from_lengths(new), rows, cache=store, keys=keys)
    want = exact.compute_hidden_states(x, positions(lengths), keys)[comes]
    same(got, want if index is None else want[index])


class Store:
    """Keys and values of tokens that are known, and then of all, in their places."""

    def __init__(self, comes):
        self.comes, self.known = comes, {}

    def update(self, k, v, layer, *_, **__):
        if layer not in self.known:
            self.known[layer] = k, v
            return k, v
        return tuple(self._whole(kept, come) for kept, come in zip(self.known[layer], (k, v), strict=True))

    def _whole(self, kept, come):
        whole = kept.new_empty(1, kept.shape[1], len(self.comes), kept.shape[3])
        whole[:, :, ~self.comes], whole[:, :, self.comes] = kept, come
        return whole


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


@pytest.mark.parametrize("check", CHECKS["backbone"], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OWN)
def test_a_backbone_conforms(name, check):
    check(Subject.from_part(backbones, name, {}))
