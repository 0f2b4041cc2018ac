"""Measured while training: the same figures every time and for any number of processes, equal to what they stand for."""

import logging
from dataclasses import replace

import pytest
import torch

import mmblocks
from mmblocks.assets import find_tiny_model as bundled_model
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import DataError
from mmblocks.eval.tinyworld import evaluate_tinyworld, sum_scores
from mmblocks.train.distributed import shard_model
from mmblocks.train.reports.evaluation import evaluate_model, is_better, is_due
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.reports.visual_ablation import measure_visual_ablation
from mmblocks.train.stages import Evaluation, read_run

HELD_OUT = [
    {"name": "tinyworld", "task": "single", "split": "heldout", "size": 7},
    {"name": "tinyworld", "task": "video", "split": "heldout", "size": 3},
    {"name": "tinyworld", "task": "text", "split": "heldout", "size": 3},
]


def curriculum(spec, evaluate=None, stage=None, **run):
    given = {
        "name": "a",
        "data": HELD_OUT,
        "train": {"projector": 1e-3},
        "steps": 1,
        "global_batch_size": 1,
        **(stage or {}),
    }
    return read_run({"model": spec, "out": "nowhere", "stages": [given], "evaluate": evaluate, **run})


def measured(model, given, world=None):
    return evaluate_model(model, given, given.stages[0], Processor.from_model(model), world)


def test_the_loss_is_the_mean_over_labelled_tokens_of_all_conversations(tiny_spec, tiny_model):
    make = Processor.from_model(tiny_model).make_training_sample
    opened = [sources.build(spec) for spec in HELD_OUT]
    batch = collate([make(source[i]) for source in opened for i in range(len(source))])
    row = measured(tiny_model, curriculum(tiny_spec, {"data": HELD_OUT, "samples": 13}))
    assert list(row) == ["eval/loss"]
    assert row["eval/loss"] == pytest.approx(tiny_model(batch).loss.item(), rel=1e-5)


def test_how_it_is_packed_changes_nothing(tiny_spec, tiny_model):
    held_out = {"data": HELD_OUT, "samples": 13}
    one = measured(tiny_model, curriculum(tiny_spec, held_out))["eval/loss"]
    for stage in ({"pack_tokens": 64}, {"pack_views": 1}):
        assert measured(tiny_model, curriculum(tiny_spec, held_out, stage))["eval/loss"] == pytest.approx(one, rel=1e-6)


def test_some_conversations_are_drawn_by_seed_and_always_the_same(tiny_spec, tiny_model):
    few = curriculum(tiny_spec, {"data": HELD_OUT, "samples": 4})
    other = curriculum(tiny_spec, {"data": HELD_OUT, "samples": 4}, seed=1)
    assert measured(tiny_model, few) == measured(tiny_model, few)
    assert measured(tiny_model, few) != measured(tiny_model, other)


def test_exact_answers_are_those_that_the_model_writes():
    model = mmblocks.load(bundled_model())
    row = measured(model, curriculum(model.spec.to_dict(), {"tiny": 24}))
    written = {
        f"eval/tiny/{task}": sum_scores(scores).exact_share
        for task, scores in evaluate_tinyworld(model, samples=24).items()
    }
    assert row == written
    assert 0.5 < min(written.values()) < 1


def test_without_an_evaluation_there_is_nothing(tiny_spec, tiny_model):
    assert measured(tiny_model, curriculum(tiny_spec)) == {}


def test_the_model_goes_on_learning_where_it_was(tiny_spec, tiny_model):
    tiny_model.train()
    measured(tiny_model, curriculum(tiny_spec, {"data": HELD_OUT, "samples": 2}))
    assert tiny_model.training
    assert all(p.grad is None for p in tiny_model.parameters())


# Broken records ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_a_lost_picture(tmp_path):
    import json

    said = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "red circle"}]
    shown = [{"from": "human", "value": "<image>\nhello"}, {"from": "gpt", "value": "red"}]
    records = [{"id": 0, "conversations": said}, {"id": 1, "image": "lost.png", "conversations": shown}]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return [{"name": "llava_json", "path": str(tmp_path / "data.json")}]


def test_a_broken_record_stops_the_run(tiny_spec, tiny_model, with_a_lost_picture):
    with pytest.raises(DataError, match=r"lost\.png"):
        measured(tiny_model, curriculum(tiny_spec, {"data": with_a_lost_picture}))


def test_or_is_left_out_where_the_run_skips_such(tiny_spec, tiny_model, with_a_lost_picture, caplog):
    with caplog.at_level(logging.WARNING):
        row = measured(tiny_model, curriculum(tiny_spec, {"data": with_a_lost_picture}, broken="skip"))
    assert row["eval/loss"] > 0
    assert "lost.png" in caplog.text


def test_when_nothing_can_be_read_nothing_is_claimed(tiny_spec, tiny_model, with_a_lost_picture, monkeypatch):
    def broken(*_):
        raise DataError("broken")

    monkeypatch.setattr(Processor, "make_training_samples", broken)
    with pytest.raises(DataError, match=r"evaluate\.data: none"):
        measured(tiny_model, curriculum(tiny_spec, {"data": with_a_lost_picture}, broken="skip"))


# When, and which weights are best ------------------------------------------------------------------------------------


def test_it_is_due_every_so_many_steps_and_at_the_end():
    due = [done for done in range(1, 8) if is_due(Evaluation(every=3), done, 7)]
    assert due == [3, 6, 7]
    assert not is_due(None, 7, 7)


def test_best_is_the_lowest_loss_and_without_one_the_most_exact_answers():
    assert is_better({"eval/loss": 1.0}, None)
    assert is_better({"eval/loss": 0.9, "eval/tiny/single": 0.1}, {"eval/loss": 1.0, "eval/tiny/single": 0.9})
    assert not is_better({"eval/loss": 1.0}, {"eval/loss": 1.0})
    assert is_better(
        {"eval/tiny/single": 0.4, "eval/tiny/video": 0.8}, {"eval/tiny/single": 0.5, "eval/tiny/video": 0.5}
    )


# Two processes -------------------------------------------------------------------------------------------------------


def test_two_processes_measure_look_and_time_as_one_does(tiny_spec, tiny_model, together):
    """Three packs for two processes; one of them has only text, the other none in its second turn."""
    held_out = {"data": HELD_OUT, "samples": 13, "tiny": 2}
    given = curriculum(tiny_spec, held_out, {"pack_tokens": 300})

    def work(world):
        model = mmblocks.build(tiny_spec, seed=0).eval()
        shard_model(model, world, "float32")
        with StepProfiler(model) as panel, panel.time_phase("forward"):
            row = measured(model, given, world)
        share = looked_at(model)[world.rank :: 2]
        return row, measure_visual_ablation(model, share, world), panel.read_metrics()["seconds/encoder"]

    alone = measured(tiny_model, given)
    (row, looks, encoder), other = together(work)
    assert (row, looks) == other[:2]
    assert row == pytest.approx(alone, rel=1e-6)
    assert encoder > 0
    # Visuals are exchanged within a process, so only the true loss is that of one process.
    assert looks.true == pytest.approx(measure_visual_ablation(tiny_model, looked_at(tiny_model)[:3]).true, rel=1e-6)
    assert looks.samples == 12


def looked_at(model):
    """Three batches of four videos, and none for the last process."""
    make, source = Processor.from_model(model).make_training_sample, sources.build("tinyworld", task="video")
    return [*(collate([make(source[4 * n + i]) for i in range(4)]) for n in range(3)), None]


def test_a_stage_with_kept_features_measures_with_its_encoder(tiny_spec, tiny_model):
    given = curriculum(tiny_spec, {"data": HELD_OUT, "samples": 13})
    kept = replace(Processor.from_model(tiny_model), features=torch.zeros(0))
    row = evaluate_model(tiny_model, given, given.stages[0], kept)
    assert row == measured(tiny_model, given)
