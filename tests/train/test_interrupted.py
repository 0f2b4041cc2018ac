"""Ctrl-C ends a run with one line: where it stopped, and how to resume."""

import re

import pytest

from mmblocks import train
from mmblocks.cli import main
from mmblocks.errors import TrainingInterrupted
from mmblocks.train import loop, run, stage_run


def interrupt_step(monkeypatch, call):
    """Ctrl-C in the `call`th step."""
    real, calls = stage_run.Stepper.__call__, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(stage_run.Stepper, "__call__", step)


@pytest.mark.parametrize(
    ("call", "stage", "done", "steps", "saved"), [(2, "align", 1, 3, 0), (3, "align", 2, 3, 2), (7, "all", 3, 5, 2)]
)
def test_an_interrupted_run_says_where_it_stopped_and_resumes(
    recipe, tmp_path, monkeypatch, undisturbed, weights, same, call, stage, done, steps, saved
):
    with monkeypatch.context() as patch:
        interrupt_step(patch, call)
        said = f"stopped in stage '{stage}' after step {done} of {steps}. {tmp_path / 'run'} holds the state after step {saved};"
        with pytest.raises(TrainingInterrupted, match=re.escape(said)):
            run(recipe)
    assert same(weights(run(recipe)), weights(undisturbed(recipe) / "model"))


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("open_run_folder", "stopped before the first step; run the same command again to begin."),
        ("begin_stage", "stopped in stage 'align' after step 3 of 3. "),
    ],
)
def test_ctrl_c_outside_of_the_steps_is_told_too(recipe, monkeypatch, moment, said):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, moment, stop)
    with pytest.raises(TrainingInterrupted, match=f"^{re.escape(said)}"):
        run(recipe)


def test_ctrl_c_while_the_next_stage_is_prepared_names_the_finished_one(recipe, tmp_path, monkeypatch):
    real = loop.StageRun

    def second_is_stopped(curriculum, number, *arguments, **settings):
        if number == 1:
            raise KeyboardInterrupt
        return real(curriculum, number, *arguments, **settings)

    monkeypatch.setattr(loop, "StageRun", second_is_stopped)
    with pytest.raises(TrainingInterrupted, match=f"^stopped after stage 'align'. {tmp_path / 'run'} holds its model;"):
        run(recipe)


def test_the_command_prints_one_line_and_ends_as_an_interrupted_one_does(monkeypatch, capsys):
    def stop(recipe):
        raise TrainingInterrupted("stopped in stage 'align' after step 2 of 3.")

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "tiny/onevision"]) == 130
    assert capsys.readouterr() == ("", "mmblocks: stopped in stage 'align' after step 2 of 3.\n")
