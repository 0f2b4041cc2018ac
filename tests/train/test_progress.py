"""What a run writes while it works: a row per report, each once, wherever the run was stopped."""

import json
import sys

import pytest
import torch

from mmblocks.errors import ConfigError, MissingDependencyError
from mmblocks.train.reports.progress import Progress, drop_rows_after
from mmblocks.train.reports.tracking import open_trackers


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def steps(progress, first, last, **others):
    for step in range(first, last):
        progress.report_step(step, float(step), tokens=100, **others)


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_row_says_loss_speed_rate_and_norm(metrics):
    with Progress("align", 0, 5, metrics, 2) as progress:
        steps(progress, 0, 5, views=7, lr=1e-3, gradient_norm=torch.tensor(0.5), mfu=0.25)
    assert [(r["stage"], r["step"]) for r in rows(metrics)] == [("align", 2), ("align", 4), ("align", 5)]
    assert [r["loss"] for r in rows(metrics)] == [0.5, 2.5, 3.5]
    first = rows(metrics)[0]
    assert (first["learning_rate"], first["gradient_norm"], first["mfu"]) == (1e-3, 0.5, 0.25)
    assert first["tokens_per_s"] / first["views_per_s"] == pytest.approx(100 / 7)


def test_the_bar_shows_the_same_figures_and_the_time_left(metrics, capsys):
    with Progress("align", 0, 4, metrics, 2) as progress:
        steps(progress, 0, 2, views=7, lr=1e-3, gradient_norm=0.5)
    shown = capsys.readouterr().err
    assert "loss 0.500" in shown
    assert "tokens/s" in shown
    assert "views/s" in shown
    assert "lr 1.0e-03, norm 0.50" in shown
    assert "align:  50%" in shown
    assert "<" in shown.splitlines()[-1]  # tqdm writes elapsed<remaining


def test_losses_may_stay_on_the_device_until_a_row_is_due(metrics):
    with Progress("align", 0, 2, metrics, 2) as progress:
        progress.report_step(0, torch.tensor(1.0), 1)
        progress.report_step(1, torch.tensor(2.0), 1)
    assert rows(metrics)[0]["loss"] == 1.5


@pytest.mark.parametrize("killed_after", [3, 4, 5, 6])
def test_going_on_from_a_state_older_than_the_last_rows_repeats_none(metrics, killed_after):
    with Progress("align", 0, 6, metrics, 2) as progress:
        steps(progress, 0, killed_after)
    with Progress("align", 3, 6, metrics, 2, pending=[1.0, 2.0]) as progress:
        steps(progress, 3, 6)
    whole = [(2, 0.5), (4, 2.5), (6, 4.5)]
    assert [(r["step"], r["loss"]) for r in rows(metrics)] == whole


def test_losses_that_no_row_has_yet_can_be_kept_with_a_state(metrics):
    with Progress("align", 0, 6, metrics, 4) as progress:
        steps(progress, 0, 2)
        assert progress.recent_losses == [0.0, 1.0]


def test_rows_of_other_stages_and_of_evaluations_stay(metrics):
    with Progress("align", 0, 2, metrics, 2) as progress:
        steps(progress, 0, 2)
    with Progress("all", 0, 4, metrics, 2) as progress:
        steps(progress, 0, 2)
        progress.write_row(2, **{"eval/loss": 1.0})
        steps(progress, 2, 4)
        progress.write_row(4, **{"eval/loss": 0.5})
    Progress("all", 2, 4, metrics, 2).__exit__(None, None, None)
    kept = [(r["stage"], r["step"], "loss" in r) for r in rows(metrics)]
    assert kept == [("align", 2, True), ("all", 2, True), ("all", 2, False)]


@pytest.mark.parametrize("left", ['{"stage": "align", "st', '{"stage": "align", "step": 2}', "7\n"])
def test_a_line_that_a_kill_left_half_written_goes(metrics, left):
    whole = '{"stage": "align", "step": 1}\n'
    metrics.write_text(whole + left)
    drop_rows_after(metrics, "align", 5)
    assert metrics.read_text() == whole


def test_only_the_first_process_writes(metrics, capsys):
    metrics.write_text('{"stage": "align", "step": 9}\n')
    with Progress("align", 0, 2, metrics, 1, writes=False) as progress:
        steps(progress, 0, 2)
    assert metrics.read_text() == '{"stage": "align", "step": 9}\n'
    assert capsys.readouterr().err == ""


# Trackers ------------------------------------------------------------------------------------------------------------


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_the_rows_once_over_a_stop(metrics, tmp_path):
    for first, last in ((0, 4), (2, 6)):  # the state was that of step 2, rows had come to step 4
        opened = open_trackers(["tensorboard"], tmp_path, first=10 + first, settings={})
        with Progress("align", first, 6, metrics, 2, trackers=opened, before=10) as progress:
            steps(progress, first, last)
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["loss"]] == [12, 14, 16]


def test_wandb_offline_keeps_one_run_over_a_stop(metrics, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    for first in (0, 2):
        opened = open_trackers(["wandb"], tmp_path, first=first, settings={"seed": 0})
        with Progress("align", first, 4, metrics, 2, trackers=opened) as progress:
            steps(progress, first, first + 2)
        names.append((tmp_path / "wandb_id").read_text())
    written = [p.name for p in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert names[0] == names[1]
    assert set(written) == {f"run-{names[0]}.wandb"}


def test_wandb_asked_for_and_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"track=\[wandb\] needs the package 'wandb'.*pip install 'wandb'"):
        open_trackers(["wandb"], tmp_path, first=0, settings={})


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord'. Did you mean 'tensorboard'\?"):
        open_trackers(["tensorbord"], tmp_path, first=0, settings={})
