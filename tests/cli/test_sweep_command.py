"""Sweeps as they are run: killed and gone on with, with a cell that fails, through two launchers."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mmblocks.cli import main
from mmblocks.data import tinyworld
from mmblocks.sweep.launch import prepare_sweep

MICRO = """\
# Two stages of a few steps on drawn shapes.
defaults:
  - /train_run
  - override /model/encoder: tiny_conv_48
  - override /model/projector: mlp
  - override /model/tokenizer/image: anyres_tiny
  - override /model/tokenizer/video: frames_8
  - override /model/backbone: qwen2_tiny
  - override /model/template: chatml
  - _self_
out: runs/micro
threads: 1
save_every: 1
log_every: 1
stages:
  - name: align
    data: [{name: tinyworld, task: caption}]
    train: {projector: 1.0e-2}
    steps: 2
    global_batch_size: 2
  - name: all
    data: [{name: tinyworld, task: single}]
    train: {projector: 1.0e-3, backbone: 1.0e-3}
    steps: 2
    global_batch_size: 2
"""
SMALL = ["model/projector=linear,mlp", "seed=0,1"]
FULL = ["model/projector=linear,mlp,gated", "model/encoder=tiny_conv,tiny_conv_48", "seed=0,1,2"]
FEW = "tiny limit=2"
MEASURED = ("peak_bytes", "seconds")
"""Columns that tell of the machine; all others are a function of the recipe."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `recipes/micro.yaml`, as the working directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/micro.yaml").write_text(MICRO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def sweep(words, folder, *more):
    return main(["sweep", "micro", *words, "--score", FEW, "--out", str(folder), *more])


def kill_midway(words, folder, ended):
    """Start a sweep and end all of its processes at once when `ended` cells have a score and the next has a state to resume."""
    command = [sys.executable, "-m", "mmblocks", "sweep", "micro", *words, "--score", FEW, "--out", str(folder)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **quiet) as process:
        while len(found(folder, "result.json")) < ended or not any(map(is_midway, found(folder, "metrics.jsonl"))):
            assert process.poll() is None, "the sweep ended by itself"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)


def is_midway(metrics):
    """Whether a cell has finished more than one step, and so saved a state, and is not done."""
    return len(metrics.read_text().splitlines()) > 1 and not (metrics.parent / "result.json").exists()


def found(folder, name):
    return sorted(folder.glob(f"*/{name}"))


def table(folder):
    with (folder / "comparison.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("words", "cells", "ended"),
    [(SMALL, 4, 1), pytest.param(FULL, 18, 7, marks=pytest.mark.slow)],
    ids=["small", "full"],
)
def test_a_sweep_killed_midway_and_started_again_gives_the_identical_table(words, cells, ended, here):
    kill_midway(words, here / "killed", ended)
    finished = {path: path.stat().st_mtime_ns for path in found(here / "killed", "result.json")}
    assert ended <= len(finished) < cells
    assert sweep(words, here / "killed") == 0
    assert sweep(words, here / "whole") == 0
    assert table(here / "killed") == table(here / "whole")
    assert len(table(here / "whole")) * (cells // len(table(here / "whole"))) == cells
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items()), "a finished cell was run again"
    twice = [path for path in found(here / "killed", "starts.json") if len(json.loads(path.read_text())) > 1]
    assert len(twice) == 1, "the cell that was killed has gone on"
    assert len({row["training loss"] for row in table(here / "whole")}) > 1


TALK = {"conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "red"}]}


@pytest.fixture
def photographs(here):
    """`good.json` and `killed.json` show an image that is there, `bad.json` one that is not; the recipe reads one."""
    from PIL import Image

    Image.new("RGB", (60, 40), "red").save(here / "red.png")
    for name, picture in (("good", "red.png"), ("killed", "red.png"), ("bad", "green.png")):
        (here / f"{name}.json").write_text(json.dumps([{"id": "1", "image": picture, **TALK}]))
    told = MICRO.replace("{name: tinyworld, task: single}", "{name: llava_json, path: good.json}")
    (here / "recipes/micro.yaml").write_text(told)
    return here


def kill_one_cell(words, folder, cell):
    """Run a sweep, killing the process of a cell as soon as it is there; the exit code and what the sweep said."""
    command = [sys.executable, "-m", "mmblocks", "sweep", "micro", *words, "--score", FEW, "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lock = folder / cell / ".lock"
        while not lock.is_file() or not lock.read_text().endswith("\n"):
            assert process.poll() is None, "the sweep ended by itself"
            time.sleep(0.01)
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
        said, _ = process.communicate()
        return process.returncode, said


def test_cells_that_fail_or_are_killed_lose_no_other_and_are_tried_again(photographs):
    words, joblib = (
        ["stages.1.data.0.path=bad.json,good.json,killed.json"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    )
    folder = photographs / "sweep"
    code, said = kill_one_cell([*words, *joblib], folder, "path-killed.json")
    assert code == 1
    assert "1 of 3 trials have finished" in said
    assert re.search(r"(?s)- path-bad\.json: .*green\.png", said)
    assert "- path-killed.json: its process was ended by SIGKILL; perhaps the machine ran out of memory" in said
    when = (folder / "path-good.json/result.json").stat().st_mtime_ns
    (photographs / "green.png").write_bytes((photographs / "red.png").read_bytes())
    assert sweep(words, folder) == 0
    assert (folder / "path-good.json/result.json").stat().st_mtime_ns == when
    assert [row["finished"] for row in table(folder)] == ["1", "1", "1"]


# Scores on data that no trial learns -----------------------------------------------------------------------------------


@pytest.fixture
def held_out(here):
    """`val.json`: eight questions about TinyWorld's images, in LLaVA's format, with answers."""
    records = []
    for number in range(8):
        record = tinyworld.make_record("single", number, seed=1, split="heldout")
        question, answer = record["messages"][:2]
        picture, text = (
            next(part for part in question["content"] if part["type"] == kind) for kind in ("image", "text")
        )
        picture["image"].save(here / f"{number}.png")
        said = [("human", f"<image>\n{text['text']}"), ("gpt", answer["content"][0]["text"])]
        turns = [{"from": who, "value": value} for who, value in said]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (here / "val.json").write_text(json.dumps(records))
    return here


def scored(words, folder):
    assert main(["sweep", "micro", "seed=0,1", *words, "--out", str(folder)]) == 0
    return table(folder)


def test_trials_are_ranked_by_a_metric_on_ones_own_data_as_eval_gives_it(held_out, capsys):
    rows = scored(["--score", "data=val.json metric=rouge_l limit=6"], held_out / "sweep")
    assert len(rows) == 1
    values = []
    for seed in (0, 1):
        model = str(held_out / f"sweep/seed-{seed}/model")
        capsys.readouterr()
        assert (
            main(["eval", model, "data=val.json", "metric=rouge_l", "--limit", "6", "--device", "cpu", "--json"]) == 0
        )
        values.append(json.loads(capsys.readouterr().out)[0]["values"]["rouge_l"])
    assert float(rows[0]["rouge_l"]) == pytest.approx(sum(values) / 2)
    assert (held_out / "sweep/seed-0/scores/results.md").is_file()
    assert (
        "`mmblocks eval MODEL data=val.json metric=rouge_l limit=6`" in (held_out / "sweep/comparison.md").read_text()
    )


def test_a_trained_trial_is_scored_in_another_way_without_training(held_out):
    scored(["--score", FEW], held_out / "sweep")
    weights = {path: path.stat().st_mtime_ns for path in held_out.glob("sweep/*/model/**/*.safetensors")}
    for metric in ("loss", "exact"):
        rows = scored(["--score", f"data=val.json metric={metric}"], held_out / "sweep")
        assert float(rows[0][metric]) >= 0
    assert len(weights) == 2 * 4
    assert all(path.stat().st_mtime_ns == when for path, when in weights.items())


def test_the_held_out_loss_of_the_recipe_is_the_last_that_was_measured(held_out):
    held_out_data = "evaluate={every: 1, data: [{name: llava_json, path: val.json}]}"
    rows = scored([held_out_data, "--score", "loss"], held_out / "sweep")
    losses = []
    for seed in (0, 1):
        lines = (held_out / f"sweep/seed-{seed}/metrics.jsonl").read_text().splitlines()
        losses.append([row["eval/loss"] for row in map(json.loads, lines) if "eval/loss" in row][-1])
    assert float(rows[0]["held-out loss"]) == pytest.approx(sum(losses) / 2)
    assert "training loss" in rows[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--score", "loss"], "the trials hold nothing out, so nothing ranks them"),
        (["--score", "data=lost.json metric=exact"], r"lost.json does not exist"),
        (["--score", "data=val.json metric=judge"], "its answers are scored by a judge"),
        (["--score", "popee data=val.json"], "no task is called 'popee'. Did you mean 'pope'?"),
        (["--score", "data=val.json metrik=exact"], "nothing reads metrik=. Did you mean 'metric'?"),
        (["--score", "data=val.json limit=0"], "limit=0 asks nothing"),
        (["--score", "tiny questions=7"], "write 'loss', or 'tiny limit=200'"),
        (["stages.0.data=[{name: llava_json, path: val.json}]"], "the trials hold nothing out"),
        (
            ["--score", "loss", "evaluate.data=[{name: llava_json, path: val.json}],[{name: tinyworld, task: single}]"],
            "hold out different conversations",
        ),
    ],
)
def test_what_cannot_rank_trials_is_refused_before_anything_starts(words, said, held_out, capsys):
    assert main(["sweep", "micro", "seed=0,1", *words, "--out", "sweep"]) == 2
    assert said in capsys.readouterr().err
    assert not (held_out / "sweep").exists()


def test_a_report_is_made_again_without_running_anything(here, capsys):

    folder = prepare_sweep("micro", ["seed=0,1"], out=here / "sweep")
    assert main(["sweep", str(folder), "--report"]) == 1
    assert "0 of 2 trials have finished" in capsys.readouterr().out
    assert (folder / "comparison.png").is_file()
    assert not found(folder, "run.json")
    assert main(["sweep", str(folder), "seed=3", "--report"]) == 2
    assert main(["sweep", "micro", "--report"]) == 2
    assert "micro is not the folder of a sweep" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_train_names_sweep_to_those_who_want_several_runs(capsys):
    assert main(["train", "micro", "-m", "seed=0,1"]) == 2
    assert main(["train", "micro", "seed=0,1"]) == 2
    said = capsys.readouterr().err
    assert "write: mmblocks sweep micro seed=0,1" in said
    assert "override 'seed=0,1' names several values; `mmblocks sweep` runs each" in said
