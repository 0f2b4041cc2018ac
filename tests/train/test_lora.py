"""Adapters: nothing at first, alone in learning, gone when merged; with the backbone around them in fewer bits or not."""

import copy
import sys
from functools import partial

import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from torch.utils.checkpoint import checkpoint

import mmblocks
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError, MissingDependencyError
from mmblocks.model.checkpoint import load, save
from mmblocks.model.generate import Decoding, generate
from mmblocks.model.quantized import QuantizedLinear
from mmblocks.model.trainable import list_adapters, list_trainable_parameters, train_only
from mmblocks.train.adapters.lora import (
    add_lora,
    disable_lora,
    list_linear_layers,
    merge_lora,
    merge_temporarily,
    prepare_trainable,
    save_adapter,
)
from mmblocks.train.optim import make_optimizer
from mmblocks.train.stages import Lora, Stage

LORA = Lora(1e-2, rank=4, alpha=8.0, dropout=0.0)
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads the old name
BITS = pytest.mark.parametrize("bits", [None, 8, 4])


def stage(**train):
    return Stage(
        "tune", [{"name": "tinyworld", "task": "single"}], train, steps=1, global_batch_size=1, weight_decay=0.05
    )


@pytest.fixture
def batch(tiny_model):
    return batch_for(tiny_model)


@pytest.fixture
def lively(tiny_spec):
    """A backbone whose logits are large enough to learn with frozen embeddings, and to differ in greedy answers."""
    backbone = {"name": "qwen2_tiny", "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48}
    return mmblocks.build({**tiny_spec, "backbone": backbone}, seed=0).eval()


def batch_for(model, task="single", size=3):
    world, processor = sources.build("tinyworld", task=task), Processor.from_model(model)
    return collate([processor.make_training_sample(world[n]) for n in range(size)])


def with_lora(model, **changes):
    add_lora(model, Lora(**{"lr": 1e-2, "rank": 4, "alpha": 8.0, "dropout": 0.0, **changes}))
    return model


def moved(model):
    """The same with adapters that do something."""
    with torch.no_grad():
        for layer in (m for m in model.backbone.modules() if hasattr(m, "adapter_layer_names")):
            layer.lora_B["default"].weight.normal_(std=0.1)
    return model


def learn(model, batch, parts=("lora",), steps=4):
    """A few steps; the losses."""
    train_only(model, parts)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(steps):
        loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Where they are ------------------------------------------------------------------------------------------------------


def test_they_sit_on_every_linear_layer_of_the_blocks_and_nowhere_else(tiny_model):
    with_lora(tiny_model)
    per_block = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapted = {n.rpartition(".")[0] for n, m in tiny_model.named_modules() if n.endswith("lora_A")}
    places = {f"self_attn.{n}" if n[1] == "_" else f"mlp.{n}" for n in per_block}
    assert adapted == {f"backbone.lm.model.layers.{i}.{place}" for i in range(2) for place in places}
    assert sum(p.numel() for p in list_trainable_parameters(tiny_model, "lora")) == 2 * 4 * (
        6 * 32 + 2 * 16 + 3 * (32 + 48)
    )


def test_an_encoder_with_layers_of_the_same_name_has_none(tiny_spec):
    siglip = {"name": "siglip", "image_px": 28, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
    model = with_lora(mmblocks.build({**tiny_spec, "encoder": siglip}, seed=0))
    assert any(name.endswith("q_proj") for name, _ in model.encoder.named_modules())
    assert not any("lora" in name for name, _ in model.encoder.named_modules())


def test_a_second_set_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="has adapters already; merge them"):
        with_lora(with_lora(tiny_model))


def test_a_backbone_without_linear_layers_is_refused(tiny_spec):
    gpt2 = {**tiny_spec["backbone"], "family": "gpt2"}
    for unknown in ("kv_heads", "mlp_dim"):
        del gpt2[unknown]
    model = mmblocks.build({**tiny_spec, "backbone": gpt2}, seed=0)
    with pytest.raises(ConfigError, match=r"'gpt2' has no linear layer.*train 'backbone' instead"):
        add_lora(model, LORA)


# What they do --------------------------------------------------------------------------------------------------------


def test_at_first_they_change_nothing(tiny_model, batch):
    before = tiny_model.compute_logits(batch)
    assert torch.equal(with_lora(tiny_model).compute_logits(batch), before)


def test_only_they_learn(lively):
    batch = batch_for(lively)
    start = {n: p.clone() for n, p in lively.state_dict().items()}
    losses = learn(with_lora(lively), batch, steps=15)
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None for p in lively.parameters() if not p.requires_grad)
    assert all(p.grad.abs().sum() > 0 for adapter in list_adapters(lively) for p in adapter.parameters())
    after = {name.replace(".base_layer", ""): p for name, p in lively.state_dict().items() if "lora" not in name}
    assert after.keys() == start.keys()
    assert all(torch.equal(after[name], start[name]) for name in start)


def test_a_projector_learns_beside_them(tiny_model, batch):
    learn(with_lora(tiny_model), batch, ("lora", "projector"))
    learning = {name.partition(".")[0] for name, p in tiny_model.named_parameters() if p.requires_grad}
    assert learning == {"projector", "backbone"}
    assert all(p.grad is not None for p in tiny_model.projector.parameters())


def test_packed_answers_do_not_see_each_other(tiny_model):
    moved(with_lora(tiny_model))
    together = tiny_model.compute_logits(batch_for(tiny_model))
    world, processor = sources.build("tinyworld", task="single"), Processor.from_model(tiny_model)
    apart = [tiny_model.compute_logits(collate([processor.make_training_sample(world[n])])) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-5)  # fp32, other shapes of products


def test_answers_are_written_with_them(lively):
    processor = Processor.from_model(lively)
    prompt = collate([processor.make_prompt_sample(asked(n)) for n in range(2)])
    plain = generate(lively, prompt, Decoding(max_new_tokens=8))
    with_lora(lively)
    assert generate(lively, prompt, Decoding(max_new_tokens=8)) == plain
    moved(lively)
    changed = generate(lively, prompt, Decoding(max_new_tokens=8))
    assert changed != plain
    merge_lora(lively)
    assert generate(lively, prompt, Decoding(max_new_tokens=8)) == changed


def asked(number):
    conversation = sources.build("tinyworld", task="single")[number]
    return type(conversation)(conversation.messages[:-1], conversation.origin)


@BITS
def test_recomputing_blocks_changes_no_gradient(tiny_model, batch, bits):
    moved(with_lora(tiny_model, bits=bits))
    train_only(tiny_model, ["lora"])
    found = []
    for gradient_checkpointing in (False, True):
        for block in tiny_model.backbone.lm.get_decoder().layers if gradient_checkpointing else []:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        tiny_model.train().zero_grad()
        tiny_model(batch).total.backward()
        found.append([p.grad.clone() for p in list_trainable_parameters(tiny_model, "lora")])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dropout_follows_torchs_generator_and_only_in_training(tiny_model, batch):
    moved(with_lora(tiny_model, dropout=0.5))
    calm = tiny_model(batch).total
    tiny_model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(tiny_model(batch).total.item())
    assert drawn[0] == drawn[1] != drawn[2]
    assert calm.item() not in drawn


def test_the_seed_draws_them_and_leaves_torchs_generator_alone(tiny_spec):
    def drawn(seed):
        torch.manual_seed(7)
        model = mmblocks.build(tiny_spec, seed=0)
        torch.manual_seed(7)
        add_lora(model, LORA, seed=seed)
        return torch.cat([p.flatten() for p in list_trainable_parameters(model, "lora")]), torch.rand(1)

    (one, after), (same, _), (other, _) = drawn(3), drawn(3), drawn(4)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))


def test_they_can_be_switched_off(tiny_model, batch):
    before = tiny_model.compute_logits(batch)
    moved(with_lora(tiny_model))
    changed = tiny_model.compute_logits(batch)
    train_only(tiny_model, ["lora"])
    with disable_lora(tiny_model):
        assert torch.equal(tiny_model.compute_logits(batch), before)
    assert torch.equal(tiny_model.compute_logits(batch), changed)
    assert all(p.requires_grad for p in list_trainable_parameters(tiny_model, "lora"))


# Parts and rates -----------------------------------------------------------------------------------------------------


def test_a_stage_makes_a_model_ready(tiny_model):
    lora = {"lr": 2e-4, "rank": 4, "weight_decay": 0.0}
    tune = stage(lora=lora, projector=2e-5, learned_tokens={"lr": 1e-3, "weight_decay": 0.2})
    prepare_trainable(tiny_model, tune, seed=1)
    learning = {n for n, p in tiny_model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n.startswith(("projector.", "learned_tokens.")) for n in learning)
    assert list(tune.trained_parts) == ["projector", "learned_tokens", "lora"]
    groups = make_optimizer(tiny_model, tune).param_groups
    rates = {(g["part"], g["lr"], g["weight_decay"]) for g in groups}
    assert rates == {
        ("projector", 2e-5, 0.05),
        ("projector", 2e-5, 0.0),
        ("learned_tokens", 1e-3, 0.0),
        ("lora", 2e-4, 0.0),
    }
    assert sum(len(g["params"]) for g in groups) == len(learning)


def test_backbone_is_what_is_around_the_adapters(tiny_model):
    around = sum(p.numel() for p in list_trainable_parameters(tiny_model, "backbone"))
    with pytest.raises(ConfigError, match="no adapters to train"):
        train_only(tiny_model, ["lora"])
    with_lora(tiny_model)
    assert sum(p.numel() for p in list_trainable_parameters(tiny_model, "backbone")) == around
    train_only(tiny_model, ["backbone"])
    assert not any(p.requires_grad for p in list_trainable_parameters(tiny_model, "lora"))


def test_a_stage_without_adapters_gets_none(tiny_model):
    prepare_trainable(tiny_model, stage(projector=1e-3))
    assert list_adapters(tiny_model) == []
    assert {n.partition(".")[0] for n, p in tiny_model.named_parameters() if p.requires_grad} == {"projector"}


# Merging -------------------------------------------------------------------------------------------------------------


@BITS
def test_merged_logits_are_the_same(tiny_model, batch, bits):
    moved(with_lora(tiny_model, bits=bits))
    before = tiny_model.compute_logits(batch)
    merge_lora(tiny_model)
    torch.testing.assert_close(
        tiny_model.compute_logits(batch), before, rtol=1e-5, atol=1e-5
    )  # fp32: one product for two
    assert list_adapters(tiny_model) == []
    assert not any(isinstance(m, QuantizedLinear) for m in tiny_model.modules())
    assert not hasattr(tiny_model.backbone.lm, "peft_config")


@PEFT_WARNS
def test_merging_is_pefts_own_to_the_bit(tiny_model):
    theirs = copy.deepcopy(tiny_model.backbone.lm)
    moved(with_lora(tiny_model))
    config = peft.LoraConfig(r=4, lora_alpha=8.0, target_modules=linear_layers_of(tiny_model), bias="none")
    wrapped = peft.get_peft_model(theirs, config)
    ours = {f"base_model.model.{n}": p for n, p in tiny_model.backbone.lm.state_dict().items()}
    wrapped.load_state_dict(ours)
    merge_lora(tiny_model)
    want = wrapped.merge_and_unload().state_dict()
    got = tiny_model.backbone.lm.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def linear_layers_of(model):
    return [name.removesuffix(".base_layer") for name in list_linear_layers(model) if "lora_" not in name]


def test_a_model_can_be_saved_in_between_and_goes_on_as_it_was(tiny_model, batch, tmp_path):
    moved(with_lora(tiny_model))
    before, names = tiny_model.compute_logits(batch), list(tiny_model.state_dict())
    with merge_temporarily(tiny_model):
        save(tiny_model, tmp_path / "model")
    assert list(tiny_model.state_dict()) == names
    assert torch.equal(tiny_model.compute_logits(batch), before)
    torch.testing.assert_close(load(tmp_path / "model").eval().compute_logits(batch), before, rtol=1e-5, atol=1e-5)


@BITS
def test_what_is_saved_is_an_ordinary_model(tiny_spec, tiny_model, batch, tmp_path, bits):
    learn(with_lora(tiny_model, bits=bits), batch, ("lora", "projector"))
    merge_lora(tiny_model)
    save(tiny_model, tmp_path / "model")
    again = load(tmp_path / "model").eval()
    assert again.state_dict().keys() == mmblocks.build(tiny_spec).state_dict().keys()
    assert torch.equal(again.compute_logits(batch), tiny_model.compute_logits(batch))


def test_a_model_without_adapters_is_merged_already(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    merge_lora(tiny_model)
    assert all(torch.equal(tiny_model.state_dict()[name], before[name]) for name in before)


# Going on ------------------------------------------------------------------------------------------------------------


@BITS
def test_learning_goes_on_from_what_learned_alone(tiny_spec, batch, bits):
    """The rest, codes included, comes from the weights that the stage started from."""

    def begun():
        model = with_lora(mmblocks.build(tiny_spec, seed=0).eval(), bits=bits)
        train_only(model, ["lora", "projector"])
        return model

    first = begun()
    learn(first, batch, ("lora", "projector"))
    learned = {name: p.detach().clone() for name, p in first.named_parameters() if p.requires_grad}
    assert all(
        "lora_A.default.weight" in n or "lora_B.default.weight" in n or n.startswith("projector.") for n in learned
    )
    second = begun()
    missing, extra = second.load_state_dict(learned, strict=False)
    assert extra == []
    assert not {n for n, p in second.named_parameters() if p.requires_grad} & set(missing)
    assert learn(second, batch, ("lora", "projector")) == learn(first, batch, ("lora", "projector"))


# PEFT's folder -------------------------------------------------------------------------------------------------------


@PEFT_WARNS
def test_peft_loads_a_saved_adapter_onto_the_exported_model(tiny_spec, tmp_path):
    from mmblocks.model.convert.transformers.export import export_hf

    siglip = {"name": "siglip", "image_px": 28, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
    spec = {**tiny_spec, "encoder": siglip, "template": "qwen_2", "tokenizer": {}}
    model = mmblocks.build(spec, seed=0).eval()
    exported = export_hf(model, tmp_path / "exported")
    moved(with_lora(model))
    folder = save_adapter(model, tmp_path / "adapter", source=str(exported))
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    base = transformers.AutoModelForImageTextToText.from_pretrained(exported).eval()
    plain = text_logits(base)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    assert {n for n, _ in theirs.named_modules() if n.endswith("lora_A") and "vision" in n} == set()
    assert (text_logits(theirs) - plain).abs().max() > 1e-2
    torch.testing.assert_close(text_logits(theirs), text_logits(model.backbone.lm), rtol=1e-5, atol=1e-5)


def text_logits(lm):
    with torch.no_grad():
        return lm(input_ids=torch.arange(5, 17)[None]).logits


@PEFT_WARNS
def test_peft_loads_a_saved_adapter_onto_the_language_model_alone(tiny_model, tmp_path):
    tiny_model.backbone.save_to(tmp_path / "lm")
    moved(with_lora(tiny_model))
    save_adapter(tiny_model, tmp_path / "adapter", base="backbone")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm").eval()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(text_logits(theirs), text_logits(tiny_model.backbone.lm), rtol=1e-5, atol=1e-5)


def test_without_adapters_there_is_nothing_to_save(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="no adapters to save"):
        save_adapter(tiny_model, tmp_path)


# Fewer bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "worst"), [(8, 0.005), (4, 0.16)]
)  # half a step: 1/254 and 0.15 of the largest weight
def test_codes_stand_for_the_weights_they_were_made_from(bits, worst):
    linear = torch.nn.Linear(96, 40)
    quantized = QuantizedLinear.from_linear(linear, bits)
    assert (quantized.weight - linear.weight).abs().max() < worst * linear.weight.abs().max()
    assert not torch.equal(quantized.weight, linear.weight)
    assert quantized.bias is linear.bias
    assert list(quantized.state_dict()) == ["bias"]


@pytest.mark.parametrize(("bits", "most"), [(8, 1.1), (4, 0.6)])
def test_codes_take_fewer_bytes(bits, most):
    quantized = QuantizedLinear.from_linear(torch.nn.Linear(256, 256, bias=False), bits)
    sizes = {n: b.numel() * b.element_size() for n, b in quantized.named_buffers() if "levels" not in n}
    assert sum(sizes.values()) < most * 256 * 256
    assert not list(quantized.parameters())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(1, 33), (7, 33), (40, 96)])
def test_a_quantized_layer_is_linear_in_its_codes(bits, shape):
    quantized = QuantizedLinear.from_linear(torch.nn.Linear(shape[1], shape[0]), bits)
    plain = torch.nn.Linear(shape[1], shape[0])
    plain.load_state_dict({"weight": quantized.weight, "bias": quantized.bias})
    x = torch.randn(2, 5, shape[1], requires_grad=True)
    assert torch.equal(quantized(x), plain(x))
    (got,), (want,) = (torch.autograd.grad(layer(x).square().sum(), x) for layer in (quantized, plain))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_backward_keeps_no_weights(bits):
    kept = []
    quantized = QuantizedLinear.from_linear(torch.nn.Linear(64, 128), bits)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        quantized(torch.randn(2, 64, requires_grad=True)).sum().backward()
    assert torch.Size((128, 64)) not in kept


@pytest.mark.parametrize("bits", [8, 4])
def test_mixed_precision_computes_in_bfloat16(bits):
    quantized = QuantizedLinear.from_linear(torch.nn.Linear(64, 128), bits)
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = quantized(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_backbone_keeps_its_head_and_embeddings_and_learns(lively, bits):
    with_lora(lively, bits=bits)
    assert sum(isinstance(m, QuantizedLinear) for m in lively.modules()) == len(linear_layers_of(lively)) == 14
    assert lively.backbone.lm.get_output_embeddings().weight.dtype == torch.float32
    losses = learn(lively, batch_for(lively), steps=15)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_without_weights_is_filled_from_one_that_has_them(tiny_spec, tiny_model, batch, bits):
    """As processes other than the first are, before a sharded stage."""
    moved(with_lora(tiny_model, bits=bits))
    with torch.device("meta"):
        empty = mmblocks.model.build.build_from_spec(tiny_model.spec)
    with_lora(empty, bits=bits).to_empty(device="cpu")
    empty.load_state_dict(tiny_model.state_dict())
    for (name, buffer), (same, filled) in zip(tiny_model.named_buffers(), empty.named_buffers(), strict=True):
        assert name == same
        filled.copy_(buffer)
    assert torch.equal(empty.eval().compute_logits(batch), tiny_model.compute_logits(batch))


@pytest.mark.parametrize(("package", "bits", "extra"), [("peft", None, "train"), ("bitsandbytes", 4, "quant")])
def test_a_missing_package_is_asked_for(tiny_model, monkeypatch, package, bits, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'mmblocks\[{extra}\]'"):
        add_lora(tiny_model, Lora(1e-4, bits=bits))


# Sharding ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@BITS
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_sharded_model_learns_as_a_whole_one_does(tiny_spec, batch, group, bits):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def begun():
        model = mmblocks.build(tiny_spec, seed=0)
        prepare_trainable(model, stage(lora={"lr": 1e-2, "rank": 4, "dropout": 0.0, "bits": bits}, projector=1e-3))
        return model.eval()

    whole, sharded = begun(), begun()
    mesh = init_device_mesh("cpu", (1,))
    for block in sharded.backbone.lm.get_decoder().layers:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    one, other = learn_in(whole, batch), learn_in(sharded, batch)
    assert other == pytest.approx(one, rel=1e-6)
    names = [n for n, p in whole.named_parameters() if p.requires_grad]
    assert [n for n, p in sharded.named_parameters() if p.requires_grad] == names
    ours = dict(whole.named_parameters())
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.full_tensor(), ours[name], rtol=1e-5, atol=1e-6)


def learn_in(model, batch):
    optimizer = make_optimizer(model, stage(lora=1e-2, projector=1e-3))
    losses = []
    for _ in range(4):
        loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
