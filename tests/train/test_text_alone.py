"""Text alone meets neither encoder nor projector: where only those learn it counts in the loss and gives no gradient."""

import copy
import itertools
import json

import pytest
import torch

import mmblocks
from mmblocks.batch import Batch
from mmblocks.data.planning.calibrate import calibrate_cost
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.trainable import train_only
from mmblocks.train import run
from mmblocks.train.adapters.lora import add_lora
from mmblocks.train.batches import StepInput
from mmblocks.train.distributed import World
from mmblocks.train.objectives import objectives
from mmblocks.train.optim import make_optimizer
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.stages import Stage
from mmblocks.train.step import Stepper

LEARNERS = [{"projector": 1e-3}, {"encoder": 1e-3}, {"encoder": 1e-3, "projector": 1e-3}, {"learned_tokens": 1e-3}]
TEXT, PICTURE = {"name": "tinyworld", "task": "text"}, {"name": "tinyworld", "task": "single"}


def stepper_of(model, train, objective="answers", decay=0.0):
    stage = Stage("tune", [TEXT], train, steps=4, global_batch_size=1, weight_decay=decay)
    train_only(model, train)
    chosen = objectives.build(objective)
    chosen.prepare_model(model, lambda: copy.deepcopy(model).eval().requires_grad_(False))
    alone, nothing = World(0, 1, torch.device("cpu")), Batch.make_empty(model.encoder.view_px)
    return Stepper(model.train(), chosen, make_optimizer(model, stage), stage, alone, StepProfiler(model), nothing)


def batch_of(model, *tasks):
    processor = Processor.from_model(model)
    return collate(
        [processor.make_training_sample(sources.build("tinyworld", task=task)[n]) for n, task in enumerate(tasks)]
    )


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("train", LEARNERS, ids=lambda train: "+".join(train))
@pytest.mark.parametrize("objective", ["answers", "dpo"])
def test_a_step_of_text_alone_changes_nothing(tiny_model, train, objective):
    step = stepper_of(tiny_model, train, objective)
    before, text = weights_of(tiny_model), batch_of(tiny_model, "text", "text")
    done = step(StepInput((text,)), 1.0)
    want = tiny_model(text).loss.item() if objective == "answers" else torch.tensor(2.0).log().item()
    assert float(done.loss) == pytest.approx(want, rel=1e-6)
    assert float(done.norm) == 0
    assert all(torch.equal(p, before[name]) for name, p in tiny_model.named_parameters())


@pytest.mark.parametrize("order", [("text", "single"), ("single", "text")], ids=lambda order: " then ".join(order))
@pytest.mark.parametrize("train", LEARNERS, ids=lambda train: "+".join(train))
def test_rows_of_text_and_of_pictures_learn_what_one_row_of_both_does(tiny_spec, train, order):
    learned = []
    for rows in ([(order[0],), (order[1],)], [order]):
        model = mmblocks.build(tiny_spec, seed=0)
        step, processor = stepper_of(model, train), Processor.from_model(model)
        samples = {task: processor.make_training_sample(sources.build("tinyworld", task=task)[3]) for task in order}
        done = step(StepInput(tuple(collate([samples[task] for task in row]) for row in rows)), 1.0)
        learned.append((float(done.loss), float(done.norm), [p.grad for p in step.parameters]))
    assert learned[0][:2] == pytest.approx(learned[1][:2], rel=1e-5)
    for apart, together in zip(learned[0][2], learned[1][2], strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-7)  # sums in another order


def test_weights_decay_and_momentum_fades_as_with_a_gradient_of_zero(tiny_model):
    """AdamW written out: the second step, without a gradient, multiplies weights by 1 - rate * decay and both moments by
    their betas.
    """
    step = stepper_of(tiny_model, {"projector": 1e-2}, decay=0.1)
    weight = tiny_model.projector.head.weight
    step(StepInput((batch_of(tiny_model, "single"),)), 1.0)
    state = step.optimizer.state[weight]
    mean, square, before = state["exp_avg"].clone(), state["exp_avg_sq"].clone(), weight.detach().clone()
    step(StepInput((batch_of(tiny_model, "text"),)), 1.0)
    torch.testing.assert_close(state["exp_avg"], 0.9 * mean)
    torch.testing.assert_close(state["exp_avg_sq"], 0.999 * square)
    moved = 1e-2 * (0.9 * mean / (1 - 0.9**2)) / ((0.999 * square / (1 - 0.999**2)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), before * (1 - 1e-2 * 0.1) - moved)


def test_adapters_learn_from_text(tiny_model):
    add_lora(tiny_model, Stage("a", [], {"lora": {"lr": 1e-3, "rank": 4}}).lora)
    step = stepper_of(tiny_model, {"lora": {"lr": 1e-3, "rank": 4}})
    assert float(step(StepInput((batch_of(tiny_model, "text"),)), 1.0).norm) > 0


def test_the_cost_of_a_model_is_measured_where_only_its_projector_learns(tiny_model):
    train_only(tiny_model, ["projector"])
    ticks = itertools.count(0.0)
    cost = calibrate_cost(tiny_model, Processor.from_model(tiny_model), tokens=64, repeats=1, clock=lambda: next(ticks))
    assert [cost.view, cost.token] == pytest.approx([0, 0], abs=1e-9)  # every pass took one tick


STAGES = {
    "one sample a step": {"global_batch_size": 1},
    "packs": {"global_batch_size": 4, "pack_tokens": 110},
    "packs by tokens": {"step_tokens": 200, "pack_tokens": 110, "pack_views": 8},
    "by modality": {"global_batch_size": 2, "order": "modality_length"},
}


def stage(train, **settings):
    return {"name": "a", "data": [TEXT, PICTURE], "train": train, "steps": 6, **settings}


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_runs_over_text_among_pictures(recipe, tmp_path, kind):
    run(
        {
            **recipe,
            "gradient_checkpointing": True,
            "log_every": 1,
            "stages": [stage({"projector": 1e-3}, **STAGES[kind])],
        }
    )
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["loss"] > 0 for row in rows)
