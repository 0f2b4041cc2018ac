"""The data of a stage: draws and steps from settings alone, whatever the number of processes."""

from dataclasses import replace

import numpy as np
import pytest

from mmblocks.data.planning import measure as measuring
from mmblocks.data.sample.processor import Processor
from mmblocks.train.plan import StagePlanner
from mmblocks.train.stages import read_run

WORLD = [{"name": "tinyworld", "task": "single", "size": 40}, {"name": "tinyworld", "task": "video", "size": 20}]


@pytest.fixture
def planner(recipe, tiny_spec):
    """Makes the planner of one stage with these settings."""

    def made(**settings):
        stage = {"name": "a", "data": WORLD, "train": {"projector": 1e-3}, **settings}
        curriculum = read_run({**recipe, "stages": [stage]})
        return StagePlanner(curriculum.stages[0], 0, curriculum.run, Processor.from_spec(tiny_spec))

    return made


def read(data):
    """Every draw of every step, in order."""
    return [data.draws[n] for step in range(len(data.plan)) for pack in data.plan.list_packs(step) for n in pack]


def test_steps_of_a_batch_size_read_that_many_samples(planner):
    data = planner(steps=5, global_batch_size=3).make_data()
    assert [[len(pack) for pack in data.plan.list_packs(step)] for step in range(len(data.plan))] == [[3]] * 5


def test_epochs_read_every_record_and_keep_the_rest_of_the_last_step(planner):
    data = planner(epochs=1.0, global_batch_size=8).make_data()
    assert len(data.plan) == 8
    assert sorted(read(data)) == [(0, i) for i in range(40)] + [(1, i) for i in range(20)]


def test_budget_scales_steps_and_epochs(planner):
    for settings, steps in (({"steps": 10, "global_batch_size": 3}, 5), ({"epochs": 1.0, "global_batch_size": 3}, 10)):
        made = planner(**settings)
        assert len(replace(made, settings=replace(made.settings, budget=0.5)).make_data().plan) == steps


def test_steps_of_tokens_are_filled_and_as_many_as_asked_for(planner):
    data = planner(steps=6, step_tokens=600, pack_tokens=200).make_data()
    tokens = [
        data.plan.sizes.tokens[np.concatenate(data.plan.list_packs(step))].sum() for step in range(len(data.plan))
    ]
    assert len(tokens) == 6
    assert all(len(data.plan.list_packs(step)) == 3 for step in range(6))
    assert min(tokens) > 400
    assert max(tokens) <= 600


def test_packs_hold_no_more_than_their_caps(planner):
    plan = planner(steps=4, global_batch_size=12, pack_tokens=250, pack_views=6).make_data().plan
    packs = [pack for step in range(len(plan)) for pack in plan.list_packs(step)]
    assert max(plan.sizes.tokens[pack].sum() for pack in packs) <= 250
    assert max(plan.sizes.views[pack].sum() for pack in packs) <= 6
    assert sorted(n for pack in packs for n in pack) == list(range(48))


def test_samples_of_one_modality_stand_together_where_asked(planner):
    data = planner(
        epochs=1.0,
        global_batch_size=10,
        order="modality_length",
        data=[*WORLD, {"name": "tinyworld", "task": "text", "size": 20}],
    ).make_data()
    kinds = [{data.draws[n].source == 2 for n in data.plan.list_packs(step)[0]} for step in range(len(data.plan))]
    assert kinds.count({True}) == 1
    assert kinds.count({False}) == 5
    assert kinds[-2:] == [{True, False}] * 2  # LLaVA joins the last batch of either kind and deals it out again


def test_lengths_are_measured_once_and_then_read(planner, monkeypatch):
    made = planner(steps=3, global_batch_size=4, pack_tokens=300)
    first = made.make_data()
    monkeypatch.setattr(measuring, "measure_item", None)  # measuring again would fail
    assert made.make_data().digest == first.digest


def test_the_digest_tells_other_data_from_the_same(planner):
    one = planner(steps=5, global_batch_size=3)
    assert one.make_data().digest == one.make_data().digest
    assert one.make_data().digest != replace(one, number=1).make_data().digest
    assert one.make_data().digest != planner(steps=5, global_batch_size=4).make_data().digest
