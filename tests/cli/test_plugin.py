"""A package of somebody else adds a projector: installed for real, used everywhere by its name."""

import json
import os
import re
import subprocess
import sys

import pytest

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "somebodys-projectors"
version = "1.0"

[project.entry-points."mmblocks.projector"]
geglu = "somebodys_projectors"
"""

PLUGIN = '''\
"""A projector that mmblocks does not have."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.shapes import Size


class GatedGELU(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(in_dim, hidden_dim)
        self.up = nn.Linear(in_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.gate(x)) * self.up(x)


@projectors.register("geglu", source="https://arxiv.org/abs/2002.05202", tiny={"expansion": 2.0})
class GEGLU(nn.Module):
    """GEGLU per patch: down(gelu(gate(x)) * up(x)).   Shape: (..., in_dim) -> (..., out_dim)."""

    spatial = True

    def __init__(self, in_dim: int, out_dim: int, expansion: float = 4.0) -> None:
        super().__init__()
        hidden_dim = round(in_dim * expansion)
        self.body = GatedGELU(in_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, out_dim)

    def out_grid(self, grid: Size) -> Size:
        return grid

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
'''

RECIPE = """\
# A recipe of somebody who has the plug-in.
defaults:
  - /train_run
  - override /model/encoder: tiny_conv
  - _self_
out: runs/mini
stages:
  - name: align
    data: [{name: tinyworld, task: caption}]
    train: {projector: 0.001}
    steps: 3
    global_batch_size: 2
"""


@pytest.fixture(scope="session")
def somewhere(tmp_path_factory):
    """A folder with a recipe, and the plug-in installed in `site` below it."""
    folder = tmp_path_factory.mktemp("somewhere")
    package = folder / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(PYPROJECT)
    (package / "somebodys_projectors.py").write_text(PLUGIN)
    (folder / "recipes").mkdir()
    (folder / "recipes/mini.yaml").write_text(RECIPE)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    offline = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*install, "--target", str(folder / "site"), str(package)], check=True, env=offline)
    return folder


@pytest.fixture
def run(somewhere):
    """Run Python with the plug-in installed; returns the finished process."""

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(somewhere / "site")}
        return subprocess.run(
            [sys.executable, *arguments], cwd=somewhere, env=environment, capture_output=True, text=True
        )

    return run


def test_a_plugged_in_component_is_listed_and_shown(run):
    both = run(
        "-c",
        """
from mmblocks.cli import main
main(["list", "projector"])
print("---")
main(["show", "projector", "geglu"])
""",
    )
    listed, _, shown = both.stdout.partition("---\n")
    assert re.search(r"^ *geglu +from the package somebodys-projectors$", listed, re.MULTILINE)
    assert "expansion  float  = 4.0" in shown
    assert "https://arxiv.org/abs/2002.05202" in shown


def test_a_plugged_in_component_is_chosen_in_a_recipe_and_builds(run):
    done = run(
        "-c",
        """
from mmblocks import conf
from mmblocks.components import projectors
spec = conf.compose("mini", ["model/projector=geglu", "model.projector.expansion=2"])["model"]["projector"]
assert spec == {"name": "geglu", "expansion": 2.0}, spec
print(projectors.build(spec, in_dim=6, out_dim=5).head)
""",
    )
    assert done.stdout == "Linear(in_features=12, out_features=5, bias=True)\n", done.stderr


def test_settings_of_a_plugged_in_component_are_checked(run):
    done = run("-m", "mmblocks", "train", "mini", "model/projector=geglu", "model.projector.expansion=wide")
    assert done.returncode == 2
    assert done.stderr == "mmblocks: recipe 'mini': model.projector.expansion='wide' is not float.\n"


def test_a_recipe_trains_with_a_plugged_in_component(run, somewhere):
    """Up to the first stage that trains the projector."""
    short = ["encoder_pretraining=null", "last_stage=align", "budget=0.001", "workers=0"]
    done = run("-m", "mmblocks", "train", "tiny/onevision", "model/projector=geglu", *short, "out=runs/geglu")
    assert done.returncode == 0, done.stderr
    config = json.loads((somewhere / "runs/geglu/model/config.json").read_text())
    assert config["model"]["projector"] == {"name": "geglu", "expansion": 4.0}


def test_a_plug_in_that_cannot_be_imported_stops_only_its_own_use(run, somewhere):
    broken = somewhere / "site/broken-1.0.dist-info"
    broken.mkdir(exist_ok=True)
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[mmblocks.projector]\nbroken = nowhere_to_be_found\n")
    done = run(
        "-c",
        """
from mmblocks import conf
print(conf.compose("mini", ["model/projector=geglu"])["model"]["projector"]["name"])
conf.compose("mini", ["model/projector=broken"])
""",
    )
    assert done.stdout == "geglu\n"
    assert "'broken' cannot be used: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in done.stderr
