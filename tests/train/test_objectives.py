"""Objectives: what a step minimises, next token or preference."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from mmblocks.batch import IGNORE, Batch
from mmblocks.conversation import Conversation, PreferencePair
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.trainable import train_only
from mmblocks.train.adapters.lora import add_lora
from mmblocks.train.checks.run import check_run
from mmblocks.train.objectives import objectives, require_items
from mmblocks.train.stages import Lora


def pair(number, kinds=("single",)):
    """A TinyWorld question, its answer preferred to that of another question."""
    world = sources.build("tinyworld", task=kinds[0])
    right, other = world[number], world[number + 1000]
    wrong = replace(right, messages=(*right.messages[:-1], other.messages[-1]))
    return PreferencePair(right, wrong)


def batch_of(model, pairs):
    processor = Processor.from_model(model)
    return collate([sample for one in pairs for sample in processor.make_training_samples(one)])


@pytest.fixture
def pairs():
    return [pair(n) for n in range(3)]


@pytest.fixture
def moved(tiny_model):
    """A model and, as its reference, what it was before its backbone changed."""
    dpo = objectives.build("dpo")
    train_only(tiny_model, ["backbone"])
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    with torch.no_grad():
        for parameter in tiny_model.backbone.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return tiny_model, dpo


def answers_log_probs(model, batch):
    """Log probability of each sequence's labelled tokens, from all logits, in float64."""
    table = torch.log_softmax(model.compute_logits(batch).double(), dim=-1)
    rows = [
        table[i, target] if target != IGNORE else torch.zeros((), dtype=torch.float64)
        for i, target in enumerate(batch.targets.tolist())
    ]
    return [torch.stack(part).sum() for part in zip_lengths(rows, batch.packing.lengths)]


def zip_lengths(rows, lengths):
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [rows[end - length : end] for end, length in zip(ends, lengths, strict=True)]


# Next token ----------------------------------------------------------------------------------------------------------


def test_answers_is_the_models_own_loss_over_its_labelled_rows(tiny_model):
    batch = collate([Processor.from_model(tiny_model).make_training_sample(pair(n).chosen) for n in range(3)])
    answers = objectives.build("answers")
    loss = answers(tiny_model, batch)
    assert torch.equal(loss.total, tiny_model(batch).total)
    assert loss.num_terms == answers.count_loss_terms(batch) == batch.num_labelled


def test_row_losses_are_the_terms_of_the_loss(tiny_model, pairs):
    batch = batch_of(tiny_model, pairs)
    rows = tiny_model.compute_row_losses(batch)
    assert rows.shape == (batch.num_labelled,)
    torch.testing.assert_close(rows.sum(), tiny_model(batch).total, rtol=1e-6, atol=0)  # the sum's order differs


# Preference ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"beta": 0.5}, {"alpha": 0.7, "gamma": 0.3}, {"label_smoothing": 0.2}, {"loss": "hinge"}],
    ids=["default", "beta", "with answers", "smoothed", "hinge"],
)
def test_dpo_is_the_papers_formula(moved, pairs, settings):
    model, started = moved
    dpo = objectives.build({"name": "dpo", **settings})
    dpo.reference = started.reference
    batch = batch_of(model, pairs)
    with torch.no_grad():
        policy, reference = answers_log_probs(model, batch), answers_log_probs(started.reference, batch)
    words = [(row != IGNORE).sum().item() for row in batch.targets.split(batch.packing.lengths)]
    beta, alpha, gamma, flipped = (
        settings.get(k, d) for k, d in (("beta", 0.1), ("alpha", 1.0), ("gamma", 0.0), ("label_smoothing", 0.0))
    )
    want = 0.0
    for n in range(0, 6, 2):
        log_odds = beta * ((policy[n] - reference[n]) - (policy[n + 1] - reference[n + 1])).item()
        if settings.get("loss") == "hinge":
            preference = max(0.0, 1 - log_odds)
        else:
            sigmoid = 1 / (1 + math.exp(-log_odds))
            preference = -(1 - flipped) * math.log(sigmoid) - flipped * math.log(1 - sigmoid)
        want += alpha * preference - gamma * policy[n].item() / words[n]
    loss = dpo(model, batch)
    assert loss.num_terms == dpo.count_loss_terms(batch) == 3
    assert loss.total.item() == pytest.approx(want, rel=1e-5)  # float32 against float64


def test_at_the_start_every_pair_costs_log_two(tiny_model, pairs):
    dpo = objectives.build("dpo")
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    loss = dpo(tiny_model, batch_of(tiny_model, pairs))
    assert loss.total.item() == pytest.approx(3 * math.log(2), rel=1e-6)
    assert loss.metrics["rewards/margins"].item() == 0
    assert loss.metrics["rewards/accuracies"].item() == 0


def test_swapping_the_answers_flips_the_margin(moved, pairs):
    model, dpo = moved
    swapped = [PreferencePair(one.rejected, one.chosen) for one in pairs]
    one, other = (dpo(model, batch_of(model, some)).metrics for some in (pairs, swapped))
    assert one["rewards/margins"].item() == pytest.approx(-other["rewards/margins"].item(), rel=1e-4)
    assert one["rewards/margins"].item() != 0
    assert one["rewards/accuracies"] + other["rewards/accuracies"] == 3
    assert one["rewards/chosen"].item() == pytest.approx(other["rewards/rejected"].item(), rel=1e-4)


def test_pairs_add_up_whatever_batch_they_are_in(moved, pairs):
    model, dpo = moved
    together = dpo(model, batch_of(model, pairs))
    apart = [dpo(model, batch_of(model, [one])) for one in pairs]
    torch.testing.assert_close(together.total, sum(loss.total for loss in apart), rtol=1e-5, atol=0)
    for name, value in together.metrics.items():
        torch.testing.assert_close(value, sum(loss.metrics[name] for loss in apart), rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_the_loss():
    dpo = objectives.build({"name": "dpo", "gamma": 0.5, "label_smoothing": 0.1})
    reference = torch.randn(6, dtype=torch.float64)
    policy = torch.randn(6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda given: dpo.compute_loss(given, reference, [3, 1, 4, 1, 5, 9]).total, policy)


def test_a_preferred_answer_gets_likelier_and_its_rival_less_likely(tiny_model):
    batch = batch_of(tiny_model, [pair(n) for n in range(20)])
    dpo = objectives.build({"name": "dpo", "beta": 0.5})
    train_only(tiny_model, ["projector", "backbone"])
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    optimizer = torch.optim.AdamW([p for p in tiny_model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(25):
        loss = dpo(tiny_model, batch)
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
        losses.append(loss)
    assert losses[-1].loss.item() < 0.6 * losses[0].loss.item()
    last = {name: value.item() / 20 for name, value in losses[-1].metrics.items()}
    assert last["rewards/accuracies"] >= 0.9
    assert last["rewards/margins"] > 0.5


def test_only_the_policy_learns(moved, pairs):
    model, dpo = moved
    dpo(model, batch_of(model, pairs)).total.backward()
    assert all(p.grad is None for p in dpo.reference.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


def test_adapters_alone_need_no_copy_of_the_model(tiny_model, pairs):
    batch = batch_of(tiny_model, pairs)
    start = tiny_model.compute_row_losses(batch).detach()
    add_lora(tiny_model, Lora(1e-4, rank=4))
    train_only(tiny_model, ["lora"])
    dpo = objectives.build("dpo")
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    assert dpo.reference is None
    move_adapters(tiny_model)
    assert torch.equal(dpo.compute_reference_losses(tiny_model, batch), start)
    assert dpo(tiny_model, batch).metrics["rewards/chosen"].item() != 0


def test_what_learns_beside_adapters_is_kept_in_a_copy(tiny_model, pairs):
    batch = batch_of(tiny_model, pairs)
    start = tiny_model.compute_row_losses(batch).detach()
    add_lora(tiny_model, Lora(1e-4, rank=4))
    train_only(tiny_model, ["lora", "projector"])
    dpo = objectives.build("dpo")
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    move_adapters(tiny_model)
    with torch.no_grad():
        tiny_model.projector.head.weight.mul_(1.5)
    assert torch.equal(dpo.compute_reference_losses(tiny_model, batch), start)


def move_adapters(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


def test_a_process_without_data_takes_part_and_counts_nothing(tiny_model):
    empty = Batch.make_empty(tiny_model.encoder.view_px)
    dpo = objectives.build("dpo")
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    loss = dpo(tiny_model, empty)
    assert (loss.total.item(), loss.num_terms, dpo.count_loss_terms(empty)) == (0, 0, 0)
    loss.total.backward()


# What is refused -----------------------------------------------------------------------------------------------------


def test_half_a_pair_is_an_error(tiny_model, pairs):
    dpo = objectives.build("dpo")
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    samples = Processor.from_model(tiny_model).make_training_samples(pairs[0])
    with pytest.raises(DataError, match="a batch of 3 sequences; it compares pairs"):
        dpo(tiny_model, collate([*samples, samples[0]]))


def test_an_answer_without_a_label_is_an_error(tiny_model, pairs):
    dpo = objectives.build("dpo")
    dpo.prepare_model(tiny_model, lambda: deepcopy(tiny_model).eval().requires_grad_(False))
    batch = batch_of(tiny_model, pairs[:1])
    targets = batch.targets.clone()
    targets[batch.packing.lengths[0] :] = IGNORE
    with pytest.raises(DataError, match="sequence 1 of the batch has no labelled token"):
        dpo(tiny_model, replace(batch, targets=targets, precomputed_target_rows=None))


def test_without_a_start_there_is_no_reference(tiny_model, pairs):
    with pytest.raises(ConfigError, match=r"no reference: call prepare_model with"):
        objectives.build("dpo")(tiny_model, batch_of(tiny_model, pairs))


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"gamma": -1.0}, {"alpha": 0.0}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match="it needs beta > 0"):
        objectives.build({"name": "dpo", **settings})


def test_sources_must_hold_what_the_objective_compares():
    conversations, compared = [Conversation((), "a")], [pair(0)]
    mixture = Mixture((conversations, compared), (1.0, 1.0), ("0 talk", "1 preferences"))
    with pytest.raises(ConfigError, match=r"data\.0 talk: this source holds conversations, and the objective compares"):
        require_items(objectives.build("dpo"), mixture)
    with pytest.raises(ConfigError, match=r"data\.1 preferences: this source holds pairs"):
        require_items(objectives.build("answers"), mixture)


def faults_of(spec, objective, **run):
    stage = {"name": "s", "data": [{"name": "tinyworld", "task": "single"}], "train": {"projector": 1e-3}}
    stage |= {"steps": 1, "global_batch_size": 1, "objective": objective}
    return [str(fault) for fault in check_run({"model": spec, "out": "runs/x", "stages": [stage], **run})]


def test_a_recipe_is_checked_for_its_objective(tiny_spec):
    assert faults_of(tiny_spec, "answers") == []
    assert "Did you mean 'dpo'" in "".join(faults_of(tiny_spec, "dop"))
    assert "has no setting 'betta'" in "".join(faults_of(tiny_spec, {"name": "dpo", "betta": 0.1}))
    assert "it needs beta > 0" in "".join(faults_of(tiny_spec, {"name": "dpo", "beta": -1.0}))
    (fault,) = faults_of(tiny_spec, "dpo")
    assert fault.startswith("stages.0.data.0")
    assert "the objective compares pairs of answers" in fault


def test_every_objective_says_where_it_comes_from():
    assert list(objectives) == ["answers", "dpo"]
    assert all(objectives[name].source.startswith("https://") for name in objectives)
