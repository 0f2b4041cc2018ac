"""Ctrl-C ends a run with one line: where it stopped, and how to resume."""

import re

import pytest

from mmblocks import train
from mmblocks.cli import main
from mmblocks.errors import TrainingInterrupted
from mmblocks.train import run, stage_run


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


def test_the_command_prints_one_line_and_ends_as_an_interrupted_one_does(monkeypatch, capsys):
    def stop(recipe):
        raise TrainingInterrupted("stopped in stage 'align' after step 2 of 3.")

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "tiny/onevision"]) == 130
    assert capsys.readouterr() == ("", "mmblocks: stopped in stage 'align' after step 2 of 3.\n")
