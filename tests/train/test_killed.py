"""A run that is killed at any moment goes on bit for bit as if nothing had happened: SIGKILL, no handler, no cleaning up."""

import json
import os
import signal

import pytest

from mmblocks.train import loop, run, stage_run, state

KILLED = [-signal.SIGKILL]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_before(module, name, call=1):
    """The process is killed when it is about to call `module.name` for the `call`th time."""

    def patch(rank):
        real, calls = getattr(module, name), []

        def counted(*arguments, **settings):
            calls.append(1)
            return die() if len(calls) == call else real(*arguments, **settings)

        setattr(module, name, counted)

    return patch


@pytest.fixture(scope="module")
def whole(recipe_in, undisturbed, weights):
    """Weights and metrics of the run that nothing disturbed."""
    out = undisturbed(recipe_in("nowhere"))
    return weights(out / "model"), metrics(out)


def metrics(out):
    """All rows of a run, without what a clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: row[k] for k in ("stage", "step", "loss", "gradient_norm", "learning_rate")} for row in rows]


MOMENTS = {
    "in a step": dies_before(stage_run.Stepper, "__call__", 2),
    "in a step after a save": dies_before(stage_run.Stepper, "__call__", 6),
    "in the middle of a save": dies_before(state, "_move_into_place", 1),
    "in the middle of a later save": dies_before(state, "_move_into_place", 3),
    "before the stage's model is written": dies_before(stage_run, "save_stage", 1),
    "between two stages": dies_before(loop, "begin_stage", 1),
    "before old states are removed": dies_before(state.shutil, "rmtree", 3),
    "at the end": dies_before(loop, "replace_folder", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_as_if_it_never_stopped(recipe, tmp_path, whole, trained, weights, same, moment):
    assert trained(recipe, patch=MOMENTS[moment]) == KILLED
    run(recipe)
    assert same(weights(tmp_path / "run/model"), whole[0])
    assert metrics(tmp_path / "run") == whole[1]
    assert not list((tmp_path / "run/state").glob(".*"))


def test_a_run_that_is_killed_again_and_again_ends_all_the_same(recipe, tmp_path, whole, trained, weights, same):
    while trained(recipe, patch=dies_before(stage_run.Stepper, "__call__", 3)) == KILLED:
        pass
    assert same(weights(tmp_path / "run/model"), whole[0])
    assert metrics(tmp_path / "run") == whole[1]
