"""A loss or a gradient that is not finite is never learned and never saved, and the advised lower rate is accepted."""

import copy
import json
import logging

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mmblocks
from mmblocks.batch import Batch
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import CheckpointError, ConfigError, TrainingError
from mmblocks.model.trainable import train_only
from mmblocks.train import run
from mmblocks.train.batches import StepInput
from mmblocks.train.distributed import World
from mmblocks.train.ema import EMA
from mmblocks.train.encoder_pretraining import pretrain_encoder
from mmblocks.train.finite_guard import FiniteGuard
from mmblocks.train.objectives import objectives
from mmblocks.train.objectives.answers import Answers
from mmblocks.train.optim import make_optimizer
from mmblocks.train.reports.evaluation import is_better
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.setting_changes import accept_changes
from mmblocks.train.stages import EncoderPretraining, Stage
from mmblocks.train.step import Stepper

WORLD = [{"name": "tinyworld", "task": "single"}]
BAD = {
    "the loss is NaN": lambda total: total * float("nan"),
    "the loss is infinite": lambda total: total + float("inf"),
    "gradients alone are NaN": lambda total: Spoilt.apply(total, float("nan")),
    "gradients alone are infinite": lambda total: Spoilt.apply(total, float("inf")),
}


class Spoilt(torch.autograd.Function):
    """The same number; its gradient times another."""

    @staticmethod
    def forward(ctx, total, by):
        ctx.by = by
        return total.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.by, None


def spoilt_at(step, kind="the loss is NaN", only_rank=None):
    """A patch: the objective's `step`th call (from 1) goes wrong, in one process or in all."""

    def patch(rank):
        real, calls = Answers.__call__, []

        def __call__(self, model, batch):
            calls.append(1)
            loss = real(self, model, batch)
            if len(calls) != step or only_rank not in (None, rank):
                return loss
            return type(loss)(BAD[kind](loss.total), loss.num_terms, loss.metrics)

        Answers.__call__ = __call__

    return patch


@pytest.fixture
def spoil(monkeypatch):
    """The same in this process, until the test ends."""
    monkeypatch.setattr(Answers, "__call__", Answers.__call__)
    return lambda *arguments: spoilt_at(*arguments)(0)


# One step ------------------------------------------------------------------------------------------------------------


def stepper_of(model, at_once, objective="answers"):
    stage = Stage("tune", WORLD, {"projector": 1e-2, "backbone": 1e-2}, steps=9, global_batch_size=2, weight_decay=0.1)
    train_only(model, stage.train)
    alone, nothing = World(0, 1, torch.device("cpu")), Batch.make_empty(model.encoder.view_px)
    chosen = objectives.build(objective)
    chosen.prepare_model(model, lambda: copy.deepcopy(model).eval().requires_grad_(False))
    given = (model, chosen, make_optimizer(model, stage), stage, alone, StepProfiler(model), nothing)
    return Stepper(*given, guard=FiniteGuard("stage 'tune'", at_once=at_once))


@pytest.fixture
def made(tiny_model):
    world, processor = sources.build("tinyworld", task="single"), Processor.from_model(tiny_model)
    return StepInput((collate([processor.make_training_sample(world[n]) for n in range(2)]),))


def learned(step):
    return [t.clone() for p in step.parameters for t in (p.detach(), *step.optimizer.state[p].values())]


@pytest.mark.parametrize("kind", BAD)
def test_a_step_that_is_not_finite_leaves_weights_and_moments_as_they_were(tiny_model, made, spoil, kind):
    spoil(3, kind)
    step = stepper_of(tiny_model, at_once=True)
    for number in (0, 1):
        step(made, 1.0, number)
    before = learned(step)
    with pytest.raises(TrainingError, match=r"^stage 'tune', step 3: the loss is .* and the gradients' norm"):
        step(made, 1.0, 2)
    assert all(torch.equal(one, other) for one, other in zip(learned(step), before, strict=True))


@pytest.mark.parametrize("kind", BAD)
def test_a_device_that_is_not_waited_for_keeps_weights_finite_and_tells_the_first_step(tiny_model, made, spoil, kind):
    spoil(3, kind)
    step, average = stepper_of(tiny_model, at_once=False), EMA(tiny_model, 0.9)
    for number in range(6):
        step(made, 1.0, number)
        average.update_average(tiny_model)
        if number < 2:
            step.guard.require_finite()
    assert all(bool(t.isfinite().all()) for t in (*learned(step), *average.state_dict().values()))
    with pytest.raises(TrainingError, match="stage 'tune', step 3: the loss is"):
        step.guard.require_finite()


def test_a_device_that_is_not_waited_for_learns_the_same_as_one_that_is(tiny_spec):
    ends = []
    for at_once in (True, False):
        model = mmblocks.build(tiny_spec, seed=0)
        world, processor = sources.build("tinyworld", task="single"), Processor.from_model(model)
        step = stepper_of(model, at_once)
        for number in range(3):
            step(StepInput((collate([processor.make_training_sample(world[number])]),)), 1.0, number)
        ends.append(learned(step))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_preferences_against_a_reference_that_says_nan_are_not_learned(tiny_model, made):
    step = stepper_of(tiny_model, at_once=True, objective="dpo")
    with torch.no_grad():
        step.objective.reference.projector.head.bias.fill_(float("nan"))
    before = learned(step)
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        step(made, 1.0)
    assert all(torch.equal(one, other) for one, other in zip(learned(step), before, strict=True))


def test_weights_that_overflow_in_an_update_are_told(tiny_model):
    alone = World(0, 1, torch.device("cpu"))
    FiniteGuard("stage 'tune'").require_finite_weights(4, tiny_model.parameters(), alone)
    with torch.no_grad():
        tiny_model.projector.head.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match="stage 'tune', step 4: its update made a weight"):
        FiniteGuard("stage 'tune'").require_finite_weights(4, tiny_model.parameters(), alone)


def test_weights_that_measure_nan_are_never_the_best():
    nan, good = {"eval/loss": float("nan")}, {"eval/loss": 2.0}
    assert [is_better(nan, None), is_better(nan, good), is_better(good, None)] == [False, False, True]


def test_the_encoders_pretraining_stops_at_the_step_and_says_what_to_change(tiny_model, tmp_path):
    absurd = EncoderPretraining(steps=20, global_batch_size=2, lr=1e30, warmup=0.0)
    with pytest.raises(
        TrainingError, match=r"\(encoder_pretraining\), step \d+: .*another encoder_pretraining\.lr"
    ) as caught:
        pretrain_encoder(tiny_model, absurd, budget=1.0, seed=0, metrics=tmp_path / "metrics.jsonl")
    told = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not told
    assert "step 2:" in str(caught.value)


# A run ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_stage(recipe):
    """Six steps, saved after every second one and told at the end."""
    rates = {"projector": 1e-3, "backbone": {"lr": 1e-3, "weight_decay": 0.1}}
    stage = {"name": "tune", "data": WORLD, "train": rates, "steps": 6, "global_batch_size": 2}
    return {**recipe, "stages": [stage], "save_every": 2, "log_every": 10}


def changed(recipe, **settings):
    return {**recipe, "stages": [{**recipe["stages"][0], **settings}]}


LOWER = {"projector": 1e-4, "backbone": {"lr": 1e-4, "weight_decay": 0.0}}


def stored(out, tmp_path):
    """Every tensor of the only state of a run, by name."""
    (state,) = (path for path in (out / "state").iterdir() if path.is_dir())
    dcp_to_torch_save(FileSystemReader(state).path, tmp_path / "state.pt")
    return dict(flat(torch.load(tmp_path / "state.pt", weights_only=False)))


def flat(nest, name=""):
    for key, value in nest.items():
        yield from flat(value, f"{name}.{key}") if isinstance(value, dict) else [(f"{name}.{key}", value)]


@pytest.mark.parametrize(
    "settings", [{"save_every": 1}, {"keep_best": True, "evaluate": {"every": 1, "tiny": 1}}, {"ema": 0.9}]
)
def test_nothing_of_a_bad_step_is_saved_and_a_lower_rate_goes_on(one_stage, tmp_path, spoil, caplog, settings):
    spoil(4)
    recipe, out = {**one_stage, **settings}, tmp_path / "run"
    with pytest.raises(TrainingError, match=r"stage 'tune', step 4: .*stages\.0\.train\.projector.*after step [23]"):
        run(recipe)
    tensors = [t for t in stored(out, tmp_path).values() if isinstance(t, torch.Tensor)]
    assert len(tensors) > 80
    assert all(bool(t.isfinite().all()) for t in tensors)
    for best in out.glob("best/*/"):
        assert all(bool(t.isfinite().all()) for t in mmblocks.load(best).state_dict().values())
    with caplog.at_level(logging.INFO):
        run(
            changed(recipe, train=LOWER, warmup=0.5, max_grad_norm=0.5, schedule="linear", weight_decay=0.2, beta2=0.95)
        )
    for said in (
        "stages.0.train.projector.lr: 0.001 -> 0.0001",
        "stages.0.train.backbone.lr: 0.001 -> 0.0001",
        "stages.0.train.backbone.weight_decay: 0.1 -> 0.0",
        "stages.0.warmup: 0.03 -> 0.5",
        "stages.0.schedule: cosine -> linear",
        "stages.0.max_grad_norm: 1.0 -> 0.5",
        "stages.0.beta2: 0.999 -> 0.95",
    ):
        assert f"resuming with another setting: {said}" in caplog.messages
    assert json.loads((out / "run.json").read_text())["stages"][0]["train"] == LOWER
    table = json.loads((out / "trains.json").read_text())["tune"]
    assert {row["part"]: row["lr"] for row in table if row["lr"]} == {"projector": 1e-4, "backbone": 1e-4}
    assert all(bool(t.isfinite().all()) for t in mmblocks.load(out / "model").state_dict().values())


def test_the_last_step_is_checked_before_the_model_is_written(one_stage, tmp_path, spoil):
    spoil(6)
    with pytest.raises(TrainingError, match="step 6: "):
        run(one_stage)
    assert not (tmp_path / "run/stages/0-tune").exists()
    assert not (tmp_path / "run/model").exists()


def test_rates_decays_and_betas_are_those_of_the_recipe_and_not_of_the_state(one_stage, spoil):
    seen = []

    def see(optimizer, *_):
        if optimizer.param_groups[0]["lr"] > 0:  # torch makes empty moments in a step of rate 0
            seen.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])

    spoil(4)
    with pytest.raises(TrainingError):
        run(one_stage)
    hook = register_optimizer_step_pre_hook(see)
    try:
        run(changed(one_stage, train=LOWER, schedule="constant", warmup=0.0, weight_decay=0.2, beta2=0.9))
    finally:
        hook.remove()
    assert len(seen) == 4
    for groups in seen:
        assert {(g["part"], g["weight_decay"]) for g in groups} == {
            ("projector", 0.2),
            ("projector", 0.0),
            ("backbone", 0.0),
        }
        assert {(g["lr"], g["base_lr"], g["betas"]) for g in groups} == {(1e-4, 1e-4, (0.9, 0.9))}


def test_precision_may_change_on_the_way(one_stage, tmp_path, spoil, caplog):
    spoil(4)
    with pytest.raises(TrainingError, match=r"stages\.0\.precision \(to float32\)"):
        run(changed(one_stage, precision="bfloat16"))
    run(changed(one_stage, precision="float32"))
    assert "stages.0.precision: bfloat16 -> float32" in caplog.text


def test_writing_a_default_is_no_change(one_stage, spoil, caplog):
    spoil(4)
    with pytest.raises(TrainingError):
        run(one_stage)
    train = {"projector": {"lr": 1e-3}, "backbone": {"lr": 1e-3, "weight_decay": 0.1}}
    run(changed(one_stage, train=train, warmup=0.03, order="mixed"))
    assert "another setting" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": {"projector": 1e-3}}, r"stages\.0\.train\.backbone"),
        ({"train": {**LOWER, "learned_tokens": 1e-3}}, r"stages\.0\.train\.learned_tokens"),
        ({"steps": 7}, r"stages\.0\.steps"),
        ({"global_batch_size": 3, "max_grad_norm": 0.5}, r"stages\.0\.global_batch_size"),
    ],
)
def test_what_learns_from_what_and_how_long_stays(one_stage, spoil, settings, said):
    spoil(4)
    with pytest.raises(TrainingError):
        run(one_stage)
    with pytest.raises(ConfigError, match=rf"other settings \({said}\)"):
        run(changed(one_stage, **settings))


def test_adapters_may_learn_at_another_rate_but_keep_their_rank(one_stage, spoil):
    spoil(4)
    recipe = changed(one_stage, train={"lora": 1e-3})
    with pytest.raises(TrainingError):
        run(recipe)
    with pytest.raises(ConfigError, match=r"other settings \(stages\.0\.train\.lora\.rank\)"):
        run(changed(one_stage, train={"lora": {"lr": 1e-3, "rank": 4}}))
    run(changed(one_stage, train={"lora": {"lr": 1e-4}}))


def test_a_finished_stage_keeps_its_settings(recipe):
    run({**recipe, "last_stage": "align"})
    first, second = recipe["stages"]
    with pytest.raises(ConfigError, match=r"other settings.*stages\.0\.warmup: 0\.03 -> 0\.5 comes too late"):
        run({**recipe, "stages": [{**first, "warmup": 0.5}, second]})
    run({**recipe, "stages": [first, {**second, "warmup": 0.5}]})


def test_the_encoders_pretraining_may_change_until_it_is_done(tmp_path, caplog):
    before, now = (
        {"encoder_pretraining": {"steps": 9}, "seed": 0},
        {"encoder_pretraining": {"steps": 9, "lr": 1e-4}, "seed": 0},
    )
    accept_changes(tmp_path, before, now, 0)
    assert caplog.messages == ["resuming with another setting: encoder_pretraining.lr: 0.002 -> 0.0001"]
    (tmp_path / "stages/encoder_pretraining").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"other settings \(encoder_pretraining\.lr\).*comes too late"):
        accept_changes(tmp_path, before, now, 0)
    with pytest.raises(ConfigError, match=r"other settings \(encoder_pretraining\.steps\)"):
        accept_changes(tmp_path / "other", before, {"encoder_pretraining": {"steps": 8}, "seed": 0}, 0)


def test_a_state_that_holds_nan_is_not_gone_on_with(one_stage, tmp_path, trained, killed_in_step, monkeypatch):
    """As versions before wrote them: saved between two rows of the log."""
    monkeypatch.setattr(FiniteGuard, "check_step", lambda *_: None)
    monkeypatch.setattr(FiniteGuard, "require_finite_weights", lambda *_: None)
    monkeypatch.setattr(Answers, "__call__", Answers.__call__)
    spoilt_at(2)(0)
    trained(one_stage, patch=killed_in_step(4))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"state/0-2 holds numbers that are infinite or NaN"):
        run(one_stage)


def test_two_processes_stop_together_when_one_of_them_meets_it(one_stage, tmp_path, trained):
    assert trained(one_stage, ranks=2, patch=spoilt_at(4, only_rank=1)) == [1, 1]
    out = tmp_path / "run"
    tensors = [t for t in stored(out, tmp_path).values() if isinstance(t, torch.Tensor)]
    assert all(bool(t.isfinite().all()) for t in tensors)
    assert not (out / "stages").exists()
    assert trained(changed(one_stage, train=LOWER), ranks=2) == [0, 0]
