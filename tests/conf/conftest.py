import pytest

MINI = """\
# One stage on drawn shapes.
defaults:
  - /train_run
  - override /model/encoder: tiny_conv
  - override /model/projector: linear
  - override /model/template: plain
  - _self_
out: runs/mini
budget: 0.5
stages:
  - name: align
    data:
      - {name: tinyworld, task: caption, weight: 2}
    train: {projector: 0.001}
    steps: 3
    global_batch_size: 2
"""

CHILD = """\
# Starts from another recipe.
defaults:
  - /mini/one@_global_
  - override /model/projector: mlp
  - _self_
seed: 7
"""


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A user's folder with `recipes/mini/{one,child}.yaml`, as the working directory; returns `recipes/mini`."""
    folder = tmp_path / "recipes" / "mini"
    folder.mkdir(parents=True)
    (folder / "one.yaml").write_text(MINI)
    (folder / "child.yaml").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    return folder
