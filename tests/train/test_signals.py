"""SIGTERM, SIGUSR1 and SIGHUP: the step is finished, its state saved, the exit code 75, and the run goes on as if nothing was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mmblocks import train
from mmblocks.cli import main
from mmblocks.errors import TrainingPreempted
from mmblocks.train import loop, run, stage_run, state

STOPPED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture
def rarely_saved(recipe):
    return {**recipe, "save_every": 1000}


def sent_in_step(number, call, ranks=(0,)):
    """A patch for `trained`: the process is sent a signal in the middle of its `call`th step."""

    def patch(rank):
        signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup, where it is ignored
        real, calls = stage_run.Stepper.__call__, []

        def step(*arguments):
            calls.append(1)
            if len(calls) == call and rank in ranks:
                os.kill(os.getpid(), number)
            return real(*arguments)

        stage_run.Stepper.__call__ = step

    return patch


def metrics(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("stage", "step", "loss", "gradient_norm", "learning_rate")} for row in rows]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_step_is_finished_and_saved_and_the_run_goes_on_to_the_same_end(
    rarely_saved, tmp_path, trained, undisturbed, weights, same, number
):
    assert trained(rarely_saved, patch=sent_in_step(number, 5)) == [STOPPED]
    assert state.list_resume_points(tmp_path / "run") == [state.ResumePoint(1, 2)]
    whole = undisturbed(rarely_saved)
    assert same(weights(run(rarely_saved)), weights(whole / "model"))
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.parametrize("call", [1, 3, 8])
def test_the_first_and_the_last_step_of_a_stage_are_no_exceptions(
    rarely_saved, trained, undisturbed, weights, same, call
):
    assert trained(rarely_saved, patch=sent_in_step(signal.SIGTERM, call)) == [STOPPED]
    assert same(weights(run(rarely_saved)), weights(undisturbed(rarely_saved) / "model"))


def test_a_run_stopped_at_every_step_ends_all_the_same(rarely_saved, trained, undisturbed, weights, same):
    codes = []
    while codes[-1:] != [0] and len(codes) < 20:
        codes += trained(rarely_saved, patch=sent_in_step(signal.SIGTERM, 1))
    assert codes[:-1] == [STOPPED] * 8
    assert same(weights(rarely_saved["out"] + "/model"), weights(undisturbed(rarely_saved) / "model"))


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_two_processes_stop_at_one_step_whichever_was_asked(
    rarely_saved, tmp_path, trained, undisturbed, weights, ranks
):
    assert trained(rarely_saved, ranks=2, patch=sent_in_step(signal.SIGUSR1, 2, ranks)) == [STOPPED] * 2
    assert state.list_resume_points(tmp_path / "run") == [state.ResumePoint(0, 2)]
    assert trained(rarely_saved, ranks=2) == [0, 0]
    once, whole = weights(tmp_path / "run/model"), weights(undisturbed(rarely_saved, ranks=2) / "model")
    assert all((once[name] - whole[name]).abs().max() < 1e-5 for name in whole)  # sums over processes: order


def sent_before(module, name, call=1):
    """A patch for `trained`: SIGTERM comes when the process is about to call `module.name` for the `call`th time."""

    def patch(rank):
        real, calls = getattr(module, name), []

        def counted(*arguments, **settings):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments, **settings)

        setattr(module, name, counted)

    return patch


MOMENTS = {
    "while records are looked at": sent_before(stage_run, "make_shared_data"),
    "in the middle of a save": sent_before(state, "_move_into_place"),
    "while a stage's model is written": sent_before(stage_run, "save_stage"),
    "between two stages": sent_before(loop, "begin_stage"),
    "before the second stage": sent_before(loop, "StageRun", 2),
    "while the last model is copied": sent_before(loop, "replace_folder"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_outside_of_the_steps_loses_nothing(recipe, tmp_path, trained, undisturbed, weights, same, moment):
    assert trained(recipe, patch=MOMENTS[moment]) == [STOPPED]
    assert same(weights(run(recipe)), weights(undisturbed(recipe) / "model"))
    assert metrics(tmp_path / "run") == metrics(undisturbed(recipe))


def waits_for_data(step, marker):
    """A patch for `trained`: the data of a step never come; `marker` is there when they are waited for."""

    def patch(rank):
        os.setsid()
        real = stage_run.StageBatches.__getitem__

        def made(batches, number):
            if (
                batches.data.mixture.names
                and len(batches) == 5
                and number == step
                and not marker.with_suffix(".off").exists()
            ):
                marker.write_text(str(os.getpgrp()))
                time.sleep(100)
            return real(batches, number)

        stage_run.StageBatches.__getitem__ = made

    return patch


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_that_waits_for_data_stops_at_once(
    rarely_saved, tmp_path, trained, undisturbed, weights, same, workers
):
    """The signal goes to the whole group, as a cluster sends it: data workers must not die before the state is saved."""
    recipe, marker = {**rarely_saved, "workers": workers}, tmp_path / "waits"
    sender = subprocess.Popen([sys.executable, "-c", SEND, str(marker)])
    began = time.monotonic()
    assert trained(recipe, patch=waits_for_data(3, marker), seconds=60) == [STOPPED]
    assert time.monotonic() - began < 50
    assert sender.wait() == 0
    (place,) = state.list_resume_points(tmp_path / "run")
    assert place.stage == 1
    assert place.step in ({3} if workers == 0 else {1, 2, 3})  # a worker is ahead
    assert same(weights(run(recipe)), weights(undisturbed(rarely_saved) / "model"))


SEND = """
import os, signal, sys, time, pathlib
marker = pathlib.Path(sys.argv[1])
while not (marker.is_file() and marker.read_text()):
    time.sleep(0.02)
os.killpg(int(marker.read_text()), signal.SIGTERM)
"""


def test_workers_outlive_a_signal_to_the_group_while_a_step_is_finished(rarely_saved, tmp_path, trained):
    def patch(rank):
        os.setsid()
        sent_by_group = stage_run.Stepper.__call__
        calls = []

        def step(*arguments):
            calls.append(1)
            if len(calls) == 5:
                os.killpg(0, signal.SIGTERM)
                time.sleep(0.5)  # a worker that died would be noticed here
            return sent_by_group(*arguments)

        stage_run.Stepper.__call__ = step

    assert trained({**rarely_saved, "workers": 2}, patch=patch) == [STOPPED]
    assert state.list_resume_points(tmp_path / "run")[-1] == state.ResumePoint(1, 2)


def test_what_the_program_ignores_stays_ignored_as_under_nohup(rarely_saved, trained):
    def patch(rank):
        sent_in_step(signal.SIGHUP, 2)(rank)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    assert trained(rarely_saved, patch=patch) == [0]


def test_handlers_are_as_before_when_a_run_has_ended(rarely_saved):
    before = [signal.getsignal(number) for number in SIGNALS]
    run(rarely_saved)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_before_the_first_step_there_is_nothing_to_save(rarely_saved, monkeypatch):
    real = loop.StageRun

    def asked(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **settings)

    monkeypatch.setattr(loop, "StageRun", asked)
    with pytest.raises(TrainingPreempted, match=r"^stopped by SIGTERM before the first step; run the same"):
        run(rarely_saved)


def test_the_command_says_where_it_stopped_and_ends_with_75(monkeypatch, capsys):
    def stop(recipe):
        raise TrainingPreempted("stopped by SIGTERM in stage 'align' after step 2 of 3.")

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "tiny/onevision"]) == STOPPED
    assert capsys.readouterr() == ("", "mmblocks: stopped by SIGTERM in stage 'align' after step 2 of 3.\n")


def test_torchrun_hands_the_signal_on(tmp_path):
    slots = {"encoder": "tiny_conv", "backbone": "qwen2_tiny", "template": "chatml"}
    defaults = ["/train_run", *({f"override /model/{kind}": name} for kind, name in slots.items()), "_self_"]
    stage = {"name": "a", "data": [{"name": "tinyworld", "task": "single"}], "train": {"projector": 1e-3}}
    run = {"out": "run", "log_every": 1, "stages": [{**stage, "steps": 50000, "global_batch_size": 2}]}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump({"defaults": defaults, **run}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "mmblocks", "train", "long.yaml", "device=cpu", "threads=1"]
    with (tmp_path / "said").open("w") as said, subprocess.Popen(command, cwd=tmp_path, stderr=said) as started:
        rows = tmp_path / "run/metrics.jsonl"
        while started.poll() is None and not (rows.is_file() and rows.read_text()):
            time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=100)
    (place,) = state.list_resume_points(tmp_path / "run")
    line = f"stopped by SIGTERM in stage 'a' after step {place.step} of 50000. run holds the state after step {place.step};"
    assert (tmp_path / "said").read_text().count(line) == 1
