import json
import subprocess
import sys

import pytest

from mmblocks import conf
from mmblocks.conf.launch import rehearse, sweep_arguments
from mmblocks.errors import ConfigError

RECORDING = """
import json, pathlib, sys
from mmblocks import train
from mmblocks.errors import DataError

def run(raw):
    if raw["seed"] == 13:
        raise DataError("seed 13 brings bad luck")
    pathlib.Path(raw["out"], "seen.json").write_text(json.dumps(raw))

train.run = run
from mmblocks.conf.sweep import main
sys.exit(main())
"""


def swept(*overrides):
    """Hydra's multirun of mini/one with a trainer that only writes down what it was asked to train."""
    command = [sys.executable, "-c", RECORDING, *sweep_arguments("mini/one", overrides)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_sweep_trains_each_combination_in_a_folder_of_its_own(recipes):
    done = swept("model/projector=mlp,linear", "seed=0,1")
    assert done.returncode == 0, done.stderr
    found = sorted(recipes.parents[1].glob("runs/mini/sweep/*/*/seen.json"))
    runs = [json.loads(p.read_text()) for p in found]
    assert [p.parent.name for p in found] == ["0", "1", "2", "3"]
    assert [(r["model"]["projector"]["name"], r["seed"]) for r in runs] == [
        ("mlp", 0),
        ("mlp", 1),
        ("linear", 0),
        ("linear", 1),
    ]
    assert runs[1] == {**conf.compose("mini/one", ["model/projector=mlp", "seed=1"]), "out": runs[1]["out"]}


def test_a_job_that_fails_says_why_without_a_traceback_and_the_others_still_run(recipes):
    done = swept("seed=13,14", "hydra.sweep.dir=here")
    assert done.returncode == 1
    assert "seed 13 brings bad luck" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((recipes.parents[1] / "here/1/seen.json").read_text())["seed"] == 14


@pytest.mark.usefixtures("recipes")
def test_hydras_own_overrides_pass_through_without_being_rehearsed():
    rehearse("mini/one", ["seed=0,1", "hydra/launcher=a_cluster", "hydra.launcher.jobs=4"])
    assert sweep_arguments("mini/one", ["seed=0,1", "hydra/launcher=a_cluster"])[-2:] == [
        "seed=0,1",
        "hydra/launcher=a_cluster",
    ]


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize(
    "overrides",
    [
        ["model/projector=mlp,linera"],
        ["seed=0,x"],
        ["seed=0,1", "bugdet=1,2"],
        ["model/projector=mlp,linear", "seed=["],
    ],
)
def test_a_typo_in_any_value_is_refused_before_the_first_job(overrides):
    with pytest.raises(ConfigError):
        rehearse("mini/one", overrides)


@pytest.mark.usefixtures("recipes")
def test_values_that_only_fit_together_are_left_to_the_jobs():
    rehearse("mini/one", ["model/projector=mlp,linear", "seed=range(0,2)", "budget=interval(0,1)"])
