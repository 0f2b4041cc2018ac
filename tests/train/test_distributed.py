"""Two processes learn what one learns: the same data, the same losses, the same weights up to the order of sums."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from mmblocks.train import run, stage_run

MIXED = [
    {"name": "tinyworld", "task": "text"},
    {"name": "tinyworld", "task": "single"},
    {"name": "tinyworld", "task": "video"},
]
ALL = {"encoder": 1e-3, "projector": 1e-3, "learned_tokens": 1e-3, "backbone": 1e-3}


def stage(name, **settings):
    return {"name": name, "data": MIXED, "train": ALL, "steps": 4, "global_batch_size": 3, **settings}


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def close(one, other, atol):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=name)


STAGES = {
    # Three samples for two processes: often one has no image, and shares of labels differ.
    "samples in turn": stage("a"),
    "fewer samples than processes": stage("a", global_batch_size=1),
    "packs, an odd number of them": stage("a", global_batch_size=5, pack_tokens=300),
    "packs whose gradients are shared one by one": stage("a", global_batch_size=6, pack_tokens=200),
    "packs by tokens": stage("a", global_batch_size=None, step_tokens=900, pack_tokens=300, pack_views=12),
    "text alone, which meets nothing that learns": stage("a", train={"projector": 1e-3}, global_batch_size=1),
    "adapters": stage("a", train={"projector": 1e-3, "lora": {"lr": 1e-3, "rank": 4, "dropout": 0.0}}),
}


@pytest.mark.parametrize("kind", STAGES)
def test_two_processes_end_where_one_does(weights, undisturbed, recipe, kind):
    recipe = {
        **recipe,
        "stages": [STAGES[kind]],
        "log_every": 1,
        "accumulate": "sharded" if "one by one" in kind else "local",
    }
    alone, both = undisturbed(recipe), undisturbed(recipe, ranks=2)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-6)
    # Adam divides by the root of squared gradients, which magnifies sums in another order where gradients are near 0.
    close(weights(both / "model"), weights(alone / "model"), atol=1e-5)


def test_one_step_of_two_processes_equals_that_of_one(recipe, tmp_path, trained, weights):
    """One step with plain rates shows the gradients themselves: the loss is divided once, by all labelled tokens."""
    recipe = {**recipe, "stages": [stage("a", steps=1, global_batch_size=4)]}
    run({**recipe, "out": str(tmp_path / "alone")})
    assert trained({**recipe, "out": str(tmp_path / "both")}, ranks=2) == [0, 0]
    rows = [json.loads((tmp_path / out / "metrics.jsonl").read_text()) for out in ("alone", "both")]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
    assert rows[0]["gradient_norm"] == pytest.approx(rows[1]["gradient_norm"], rel=1e-5)


def test_several_stages_are_handed_over_whole(recipe, weights, undisturbed):
    alone, both = undisturbed(recipe), undisturbed(recipe, ranks=2)
    for folder in ("stages/0-align", "stages/1-all", "model"):
        close(weights(both / folder), weights(alone / folder), atol=1e-5)


@pytest.fixture(scope="module")
def killed_once(recipe_in, trained, tmp_path_factory):
    """The folder of a run of two processes of which the second was killed in its sixth step, after a save; the first ended
    by itself.
    """

    def patch(rank):
        real, calls = stage_run.Stepper.__call__, []

        def step(*arguments):
            calls.append(1)
            if rank == 1 and len(calls) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        stage_run.Stepper.__call__ = step

    out = tmp_path_factory.mktemp("killed") / "run"
    codes = trained({**recipe_in(out), "timeout_s": 20.0}, ranks=2, patch=patch)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)
    return out


@pytest.fixture
def killed(killed_once, recipe, tmp_path):
    """The recipe of the killed run, in a copy of its folder."""
    shutil.copytree(killed_once, tmp_path / "run")
    return recipe


def test_when_one_of_two_processes_is_killed_both_go_on_to_the_same_end(
    killed, tmp_path, trained, weights, same, undisturbed
):
    whole = undisturbed(killed, ranks=2)
    assert len(losses(tmp_path / "run")) < len(losses(whole))
    assert trained(killed, ranks=2) == [0, 0]
    assert same(weights(tmp_path / "run/model"), weights(whole / "model"))
    assert losses(tmp_path / "run") == losses(whole)


def test_a_run_goes_on_with_another_number_of_processes(killed, tmp_path, weights, undisturbed):
    alone = undisturbed(killed)
    run(killed)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-6)
    close(weights(tmp_path / "run/model"), weights(alone / "model"), atol=1e-5)


def test_a_process_that_hangs_is_given_up_after_the_timeout(recipe, tmp_path, trained):
    """The second process stands still until the first, which waits for it, has ended: its lock goes with it."""

    def patch(rank):
        lock = (tmp_path / "first.lock").open("a")
        if rank == 0:
            stage_run.lock_of_the_first = lock  # held open until the process ends
            fcntl.flock(lock, fcntl.LOCK_EX)
        else:
            real = stage_run.Stepper.__call__
            stage_run.Stepper.__call__ = lambda *arguments: (fcntl.flock(lock, fcntl.LOCK_SH), real(*arguments))[1]

    codes = trained({**recipe, "timeout_s": 4.0}, ranks=2, patch=patch, seconds=60)
    assert 0 not in codes


def test_bfloat16_computes_nearly_the_same_on_two_processes(recipe, undisturbed):
    recipe = {**recipe, "stages": [stage("a", precision="bfloat16")], "log_every": 1}
    alone, both = undisturbed(recipe), undisturbed(recipe, ranks=2)
    assert losses(both) == pytest.approx(losses(alone), rel=0.02)  # 8 bits of mantissa


def test_torchrun_trains_a_recipe(recipe, tmp_path):
    """The command of the how-to page, in a shell."""
    slots = {"encoder": "tiny_conv", "backbone": "qwen2_tiny", "template": "chatml"}
    defaults = ["/train_run", *({f"override /model/{kind}": name} for kind, name in slots.items()), "_self_"]
    data = {"name": "tinyworld", "task": "single"}
    steps = {"name": "a", "data": [data], "train": {"projector": 1e-3}, "steps": 2, "global_batch_size": 2}
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump({"defaults": defaults, "out": "out", "stages": [steps]}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "mmblocks", "train", "micro.yaml", "device=cpu"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the model is in out/model") == 1
    assert len(losses(tmp_path / "out")) == 1
