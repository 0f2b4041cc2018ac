"""Dropout, stochastic depth and batch statistics belong to what learns; frozen parts compute what they do in evaluation."""

import copy

import pytest
import torch
from torch import nn

import mmblocks
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.trainable import train_only
from mmblocks.train.adapters.lora import add_lora
from mmblocks.train.encoder_pretraining import pretrain_encoder
from mmblocks.train.objectives import objectives
from mmblocks.train.reports.evaluation import evaluate_model
from mmblocks.train.reports.visual_ablation import measure_visual_ablation
from mmblocks.train.stages import EncoderPretraining, Lora, read_run

DROPS = {
    "name": "causal_lm",
    "family": "opt",
    "text_tokenizer": "mmblocks:tinyworld_text",
    "vocab_size": 640,
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "max_tokens": 1024,
    "further": {"dropout": 0.5},
}
WORLD = [{"name": "tinyworld", "task": "single"}]


@pytest.fixture
def dropping(tiny_spec):
    """A model whose language model drops half of what passes, and whose encoder normalises by batch statistics and drops."""
    model = mmblocks.build({**tiny_spec, "backbone": DROPS}, seed=0)
    model.encoder.stem.insert(0, nn.BatchNorm2d(3)).insert(1, nn.Dropout(0.5))
    return model


@pytest.fixture
def batch(dropping):
    world = sources.build("tinyworld", task="single")
    return collate([Processor.from_model(dropping).make_training_sample(world[n]) for n in range(2)])


def losses(model, batch, times=2):
    with torch.no_grad():
        return {float(model(batch).total) for _ in range(times)}


@pytest.mark.parametrize("learns", [["projector"], ["learned_tokens"], ["projector", "learned_tokens"]])
def test_a_frozen_language_model_and_encoder_compute_in_training_what_they_do_in_evaluation(dropping, batch, learns):
    train_only(dropping, learns)
    assert losses(dropping.train(), batch) == losses(dropping.eval(), batch)


@pytest.mark.parametrize("learns", [["backbone"], ["encoder"]])
def test_what_learns_keeps_its_dropout(dropping, batch, learns):
    train_only(dropping, learns)
    assert len(losses(dropping.train(), batch, 3)) == 3
    assert len(losses(dropping.eval(), batch, 3)) == 1


def test_statistics_of_a_frozen_encoder_stay_and_those_of_a_learning_one_move(dropping, batch):
    norm = dropping.encoder.stem[0]
    before = norm.running_mean.clone()
    train_only(dropping, ["projector"])
    losses(dropping.train(), batch)
    assert torch.equal(norm.running_mean, before)
    train_only(dropping, ["encoder"])
    losses(dropping.train(), batch)
    assert not torch.equal(norm.running_mean, before)


def test_choosing_what_learns_sets_the_modes_of_a_model_in_training(dropping):
    dropping.train()
    train_only(dropping, ["projector"])
    assert (dropping.training, dropping.projector.training) == (True, True)
    assert not any(m.training for part in (dropping.encoder, dropping.backbone) for m in part.modules())
    train_only(dropping, ["backbone"])
    assert dropping.backbone.training
    assert not dropping.projector.training
    dropping.eval()
    train_only(dropping, ["projector"])
    assert not any(m.training for m in dropping.modules())


def test_adapters_keep_their_dropout_and_frozen_modules_beside_them_have_none(dropping, batch):
    add_lora(dropping, Lora(1e-3, rank=4, dropout=0.5))
    train_only(dropping, ["lora"])
    dropping.train()
    drawn = [m for n, m in dropping.named_modules() if n.endswith("lora_dropout.default")]
    assert drawn
    assert all(m.training for m in drawn)
    assert not any(m.training for part in (dropping.encoder, dropping.projector) for m in part.modules())
    assert not any(m.training for n, m in dropping.named_modules() if n.endswith("base_layer"))


def test_a_preference_is_compared_with_what_the_reference_says_in_evaluation(dropping, batch):
    """With adapters alone the reference is the model itself, which is in training mode."""
    want = dropping.eval().compute_row_losses(batch).detach()
    add_lora(dropping, Lora(1e-3, rank=4, dropout=0.5))
    train_only(dropping, ["lora"])
    dpo = objectives.build("dpo")
    dpo.prepare_model(dropping, lambda: copy.deepcopy(dropping).eval().requires_grad_(False))
    modes = [m.training for m in dropping.train().modules()]
    assert torch.equal(dpo.compute_reference_losses(dropping, batch), want)
    assert [m.training for m in dropping.modules()] == modes


def test_measuring_on_the_way_leaves_every_mode_as_it_was(dropping, batch, tiny_spec):
    stage = {"name": "a", "data": WORLD, "train": {"projector": 1e-3}, "steps": 1, "global_batch_size": 1}
    run = {"model": {**tiny_spec, "backbone": DROPS}, "out": "nowhere", "stages": [stage]}
    curriculum = read_run({**run, "evaluate": {"data": WORLD, "samples": 1}})
    train_only(dropping, ["projector"])
    modes = [m.training for m in dropping.train().modules()]
    measure_visual_ablation(dropping, [batch])
    assert [m.training for m in dropping.modules()] == modes
    evaluate_model(dropping, curriculum, curriculum.stages[0], Processor.from_model(dropping))
    assert [m.training for m in dropping.modules()] == modes


def test_an_error_in_evaluation_mode_gives_the_modes_back():
    module = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
    seen = []
    module.register_forward_hook(lambda *_: seen.append(module[0].training))
    with pytest.raises(RuntimeError, match="shapes"), use_evaluation_mode(module):
        module(torch.ones(1, 2)) @ torch.ones(3, 3)
    assert seen == [False]
    assert [m.training for m in module.modules()] == [True, True, False]


def test_an_encoder_that_learns_to_see_is_in_training_mode_and_nothing_else_is(dropping, tmp_path):
    train_only(dropping.train(), [])
    seen = []
    dropping.encoder.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    pretrain_encoder(
        dropping,
        EncoderPretraining(steps=1, global_batch_size=2),
        budget=1.0,
        seed=0,
        metrics=tmp_path / "metrics.jsonl",
    )
    assert seen == [True]
    assert not dropping.encoder.training
    assert not dropping.backbone.training


def test_a_text_that_a_frozen_language_model_reads_costs_the_same_every_time(tiny_spec):
    model = mmblocks.build({**tiny_spec, "backbone": DROPS}, seed=0)
    train_only(model, {"projector": 1e-3})
    talk = Conversation.from_messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
    batch = collate([Processor.from_model(model).make_training_sample(talk)])
    assert len(losses(model.train(), batch)) == 1
