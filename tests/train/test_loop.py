"""A run is a pure function of its recipe: stopping and going on changes nothing."""

import json

import pytest
import torch

import mmblocks
from mmblocks.batch import Batch
from mmblocks.errors import ConfigError
from mmblocks.model.trainable import train_only
from mmblocks.train import run
from mmblocks.train.batches import StepInput
from mmblocks.train.distributed import World
from mmblocks.train.objectives import objectives
from mmblocks.train.optim import compute_lr_factor, make_optimizer
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.stage_run import derive_seed, set_seeds
from mmblocks.train.stages import Stage, read_run
from mmblocks.train.step import Stepper

WORLD = [{"name": "tinyworld", "task": "single"}]


def test_a_run_leaves_a_model_its_stages_and_metrics(recipe, tmp_path, weights, same):
    run(recipe)
    out = tmp_path / "run"
    assert sorted(p.name for p in (out / "stages").iterdir()) == ["0-align", "1-all"]
    assert same(weights(out / "model"), weights(out / "stages/1-all"))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in rows] == [("align", 2), ("align", 3), ("all", 2), ("all", 4), ("all", 5)]
    assert all(r["loss"] > 0 and r["tokens_per_s"] > 0 for r in rows)


def test_two_runs_of_a_recipe_are_equal_and_another_seed_differs(recipe, tmp_path, weights, same, undisturbed):
    first = weights(undisturbed(recipe) / "model")
    run({**recipe, "out": str(tmp_path / "b")})
    run({**recipe, "out": str(tmp_path / "c"), "seed": 1})
    assert same(first, weights(tmp_path / "b/model"))
    assert not same(first, weights(tmp_path / "c/model"))


def test_worker_processes_change_nothing(recipe, tmp_path, weights, same, undisturbed):
    run({**recipe, "out": str(tmp_path / "b"), "workers": 1})
    assert same(weights(undisturbed(recipe) / "model"), weights(tmp_path / "b/model"))


def test_frozen_parts_keep_their_weights_bit_for_bit(recipe, tmp_path, weights):
    start = mmblocks.build(recipe["model"], seed=0).state_dict()
    run({**recipe, "last_stage": "align"})
    end = weights(tmp_path / "run/model")
    changed = {name.partition(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"projector"}


def test_a_folder_of_another_run_is_refused(recipe):
    run({**recipe, "last_stage": "align"})
    with pytest.raises(ConfigError, match=r"other settings.*resume=false"):
        run({**recipe, "seed": 5})


def test_a_run_starts_from_a_saved_model(recipe, tmp_path, weights, same):
    run({**recipe, "last_stage": "align"})
    again = {**recipe, "weights": str(tmp_path / "run/model"), "out": str(tmp_path / "next"), "budget": 0.2}
    again["stages"] = [{**recipe["stages"][0], "train": {"learned_tokens": 1e-9}}]
    run(again)
    before, after = weights(tmp_path / "run/model"), weights(tmp_path / "next/model")
    assert same(
        {k: v for k, v in before.items() if "learned_tokens" not in k},
        {k: v for k, v in after.items() if "learned_tokens" not in k},
    )


def test_all_faults_of_a_run_are_listed_at_once(recipe):
    recipe["stages"][0]["train"] = {"projetcor": 1e-3}
    recipe["stages"][1]["steps"] = "many"
    with pytest.raises(ConfigError) as caught:
        read_run({**recipe, "sed": 3})
    text = str(caught.value)
    assert "sed is not a setting" in text
    assert "Did you mean 'seed'" in text
    assert "stages.0.train.projetcor" in text
    assert "stages.1.steps: steps='many' is not int" in text


def test_the_loss_falls_on_twenty_samples(tiny_model):
    from mmblocks.data.sample.collate import collate
    from mmblocks.data.sample.processor import Processor
    from mmblocks.data.sources import sources

    source = sources.build("tinyworld", task="single")
    batch = collate([Processor.from_model(tiny_model).make_training_sample(source[i]) for i in range(20)])
    rates = {"encoder": 3e-3, "projector": 3e-3, "learned_tokens": 3e-3, "backbone": 3e-3}
    stage = Stage("x", WORLD, rates, steps=1, global_batch_size=20)
    train_only(tiny_model, stage.train)
    optimizer = make_optimizer(tiny_model, stage)
    with StepProfiler(tiny_model) as panel:
        nothing = Batch.make_empty(tiny_model.encoder.view_px)
        alone = World(0, 1, torch.device("cpu"))
        step = Stepper(tiny_model, objectives.build("answers"), optimizer, stage, alone, panel, nothing)
        losses = [float(step(StepInput((batch,)), 1.0).loss) for _ in range(80)]
    assert losses[-1] < 0.3 * losses[0]


def test_each_part_has_its_own_learning_rate_and_norms_do_not_decay(tiny_model):
    stage = Stage("x", WORLD, {"encoder": 2e-6, "backbone": 1e-5}, steps=1, global_batch_size=1, weight_decay=0.1)
    groups = make_optimizer(tiny_model, stage).param_groups
    assert {(g["part"], g["lr"]) for g in groups} == {("encoder", 2e-6), ("backbone", 1e-5)}
    assert all((g["weight_decay"] == 0) == all(p.ndim <= 1 for p in g["params"]) for g in groups)


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    factors = [compute_lr_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] < 0.001
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_steps_stages_and_runs_have_seeds_of_their_own():
    seeds = [derive_seed(run, stage, step) for run in range(3) for stage in range(3) for step in range(1000)]
    assert len({*seeds}) == len(seeds)
    assert derive_seed(2**62, 3, 5) == (2**62 * 1_000_003 + 3 * 10_007 + 5) % 2**31


def test_generators_are_seeded_as_torch_seeds_them():
    set_seeds(2**31 - 1, torch.device("cpu"))
    drawn = torch.rand(5), torch.randperm(9)
    torch.manual_seed(2**31 - 1)
    assert torch.equal(torch.rand(5), drawn[0])
    assert torch.equal(torch.randperm(9), drawn[1])


@pytest.mark.gpu
def test_a_gpu_is_seeded_as_torch_seeds_it():
    set_seeds(7, torch.device("cuda", 0))
    drawn = torch.rand(5, device="cuda:0")
    torch.manual_seed(7)
    assert torch.equal(torch.rand(5, device="cuda:0"), drawn)
